"""What benchmarks/gpu_kernels.py counts in a program's text, against bytes that are counted by hand."""

from __future__ import annotations

from types import ModuleType

import benchmark_scripts
import pytest

PROGRAM = """
%sliced (table: f32[8,100], kept: f32[8,100], at: s32[]) -> f32[8,100] {
  %table = f32[8,100]{1,0} parameter(0)
  %kept = f32[8,100]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,100]{1,0} dynamic-slice(%table, %at, %zero), dynamic_slice_sizes={1,100}
  ROOT %update = f32[8,100]{1,0} dynamic-update-slice(%kept, %slice, %at, %zero)
}

%body (carry: (s32[], f32[8,100], /*index=2*/f32[8,100])) -> (s32[], f32[8,100], f32[8,100]) {
  %carry = (s32[], f32[8,100]{1,0}, /*index=2*/f32[8,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %a = f32[8,100]{1,0} get-tuple-element(%carry), index=1
  %b = f32[8,100]{1,0} get-tuple-element(%carry), index=2
  %fusion = f32[8,100]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%sliced
  %next = f32[8,100]{1,0} add(%a, %fusion)
  ROOT %out = (s32[], f32[8,100]{1,0}, /*index=2*/f32[8,100]{1,0}) tuple(%i, %next, %fusion)
}

%condition (carry.1: (s32[], f32[8,100], f32[8,100])) -> pred[] {
  %carry.1 = (s32[], f32[8,100]{1,0}, f32[8,100]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (start: (s32[], f32[8,100], f32[8,100])) -> (s32[], f32[8,100], f32[8,100]) {
  %start = (s32[], f32[8,100]{1,0}, f32[8,100]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,100]{1,0}, f32[8,100]{1,0}) while(%start), condition=%condition, body=%body, """ + (
    'backend_config={"known_trip_count":{"n":"5"}}\n}\n'
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_scripts.load("gpu_kernels")


def test_loops_are_found_with_their_turns(script: ModuleType) -> None:
    assert script.loops(script.lines_of(PROGRAM)) == [("main", "body", 5)]


def test_only_the_slice_of_a_sliced_array_is_counted(script: ModuleType) -> None:
    row, table, index = 4 * 100, 4 * 8 * 100, 4
    fused = row + index + row  # read, and written in place
    added = 3 * table
    assert script.kernels(script.lines_of(PROGRAM), "body") == [fused, added]


def test_what_runs_beside_others_is_one_kernel(script: ModuleType) -> None:
    fused = next(line for line in PROGRAM.splitlines() if "calls=%sliced" in line)
    begun = (
        "  %begun = ((f32[8,100]{1,0}, f32[8,100]{1,0}, s32[]), f32[8,100]{1,0}, u32[]) fusion-start(%a, %b, %i), "
        "kind=kLoop, calls=%sliced\n  %fusion = f32[8,100]{1,0} fusion-done(%begun)"
    )
    at_once, later = (
        script.kernels(script.lines_of(text), "body") for text in (PROGRAM, PROGRAM.replace(fused, begun))
    )
    assert later == at_once
