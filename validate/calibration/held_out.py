"""Which of the randomly drawn rows are fitted, and which judge the fit.

The rows come from `benchmarks/heldout.py`. Every other one may be fitted; of those with limits of
the SMs all that have the limits named here. What has a prompt length beside others that a fitted
row has too, by chance, judges nothing. So no row that judges shares its prompt lengths with one
that was fitted, nor, where SMs are divided, its split.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitwiser.validate.calibration.steps import StepRow

# Limits in shares of 132 SMs as MPS granted them (None, 65, 30, 60 and 20 %), and the parts of
# green contexts: 18 % beside 82 %, 62 % beside 38 %.
FITTED_LIMITS = (1.0, 84 / 132, 38 / 132, 78 / 132, 26 / 132)
FITTED_PARTS = (24 / 132, 84 / 132)
CLOSE = 0.5 / 132


def split(rows: Sequence[StepRow]) -> tuple[list[StepRow], list[StepRow]]:
    """Return the rows to fit and the rows that judge; phases alone all judge.

    Repetitions go where the first one goes.
    """
    fitted: list[StepRow] = []
    judged: list[StepRow] = []
    seen: dict[str, bool] = {}
    for row in rows:
        key = f"{row.sharing}: {row.title} {[load.llm for load in row.loads]}"
        if key not in seen:
            seen[key] = not row.alone and _is_fitted(row, len(seen))
        (fitted if seen[key] else judged).append(row)
    lengths = set().union(*map(_lengths, fitted))
    return fitted, [row for row in judged if row.alone or not _lengths(row) & lengths]


def _lengths(row: StepRow) -> set[int]:
    return {load.tokens for load in row.loads if load.prompts}


def _is_fitted(row: StepRow, place: int) -> bool:
    if row.sharing == "green_contexts":
        return _among(row.shares[1], FITTED_PARTS)
    if row.regime == "mps, limited":
        return all(_among(share, FITTED_LIMITS) for share in row.shares)
    return place % 2 == 0


def _among(share: float, shares: Sequence[float]) -> bool:
    return any(abs(share - other) < CLOSE for other in shares)
