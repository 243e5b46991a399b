"""Damaged files: every parser either reads them or raises ``DataError`` that names the file.

``LIDARSSL_FUZZ_EXAMPLES`` sets the number of examples of each parser (default 300);
``benchmarks/fuzz_parsers.py`` runs many more without hypothesis.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_targets import Target, damage, survives, targets

EXAMPLES = int(os.environ.get("LIDARSSL_FUZZ_EXAMPLES", "300"))
EDITS = st.lists(
    st.tuples(
        st.integers(0, 6), st.floats(0, 1, exclude_max=True, allow_nan=False), st.integers(0, 2**16)
    ),
    max_size=4,
)
TARGETS = targets()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_intact_files_are_read(target: Target) -> None:
    assert all(survives(target, seed) for seed in target.seeds)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_raise_only_data_errors(target: Target) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.sampled_from(target.seeds), edits=EDITS)
    def run(seed: bytes, edits: list[tuple[int, float, int]]) -> None:
        survives(target, damage(seed, edits))

    run()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bytes_from_nowhere_raise_only_data_errors(target: Target) -> None:
    @settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.binary(max_size=400))
    def run(data: bytes) -> None:
        survives(target, data)

    run()
