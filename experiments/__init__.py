"""What is compared: data only. Each file defines EXPERIMENT; `rlsuite sweep experiments/<file>.py` runs it."""
