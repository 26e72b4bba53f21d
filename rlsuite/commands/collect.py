"""`rlsuite collect ENV`: train an agent and record datasets of several qualities from along its way."""

from __future__ import annotations

from rlsuite import algorithms
from rlsuite.commands.options import Parser
from rlsuite.errors import MOST_INT32, MOST_RUNS, check_at_most, check_positive
from rlsuite.sweeping import collect, recipes
from rlsuite.sweeping.sweep import make_env
from rlsuite.training.device import prepare_jax


def main(arguments: list[str]) -> int:
    """Make datasets by the environment's recipe, changed by what the options say."""
    parser = Parser(
        prog="rlsuite collect",
        description="Train an agent on an environment and record datasets from along its way, in Minari's format.\n\n"
        + "\n".join(f"  {tier:<18} {text}" for tier, text in recipes.TIERS.items()),
    )
    parser.add_argument("env", metavar="ENV", help="environment id, see 'rlsuite list'")
    parser.add_argument("--tiers", metavar="LIST", help="of the above, with commas between (all)")
    parser.add_argument("--transitions", type=int, metavar="N", help="in each tier (as in the recipe, else 20000)")
    parser.add_argument(
        "--algorithm", metavar="NAME", help="ppo or sac, at its default settings for ENV (the recipe's)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="environment steps of each run (the recipe's, else 100000)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs, of which the best becomes the expert (8)")
    options = parser.parse_args(arguments)
    env = make_env(options.env)
    prepare_jax()
    recipe = recipes.RECIPES.get(env.id)
    if recipe is None or options.algorithm is not None:
        name = options.algorithm or "sac"
        preset = algorithms.get(name).preset(env.id)
        recipe = recipes.Recipe(name, preset.config, preset.hypers, steps=100_000, transitions=20_000)
    given = {name: getattr(options, name) for name in ("transitions", "steps", "seeds")}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    check_positive(transitions=recipe.transitions, steps=recipe.steps, seeds=recipe.seeds)
    check_at_most(MOST_INT32, transitions=recipe.transitions)
    check_at_most(MOST_RUNS, seeds=recipe.seeds)
    collect.make(env, recipe, tuple(options.tiers.split(",")) if options.tiers else tuple(recipes.TIERS))
    return 0
