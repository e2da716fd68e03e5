"""What processes compare, in one process. tests/test_distributed.py has real processes."""

from __future__ import annotations

import math

import pytest
import torch

import cats
from cats import agreement
from cats.ops import self_check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_sees_one_bit_in_any_order_and_takes_nan_for_a_number(dtype: torch.dtype) -> None:
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[2, 3] = math.nan
    total = agreement._checksum(values)
    assert total.dtype == torch.float64 and total.dim() == 0
    assert torch.equal(total, agreement._checksum(values.T)) and torch.equal(total, agreement._checksum(values.clone()))
    other = values.clone()
    other[0, 0] = torch.nextafter(values[0, 0].float(), torch.tensor(9.0)) if dtype == torch.float32 else values[0, 1]
    assert not torch.equal(total, agreement._checksum(other))
    assert agreement._checksum(torch.empty(0, dtype=dtype)).item() == 0


def test_differences_are_named_with_the_first_process_of_each_value() -> None:
    described = [
        {"task": ["'az'", "'be'"], "rate": repr(rate), "long": "x" * 200 + str(rate), "same": "nan"}
        for rate in (0.5, 0.25, 0.5, 0.25)
    ]
    described[3]["task"] = ["'az'", "'cs'"]
    said = agreement._differences(described, [0, 1, 6, 7])
    assert "task 1 ('be' in process 0, 'cs' in process 7), rate (0.5 in process 0, 0.25 in process 1)" in said
    assert "same (" not in said and "task 0" not in said and len(said) < 500
    many = [{str(i): str(i * rank) for i in range(1, 10)} for rank in range(2)]
    assert "5 (0 in process 0, 5 in process 1) and 4 more:" in agreement._differences(many, [0, 1])


def test_descriptions_are_exact_and_the_same_for_equal_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(**options: object) -> agreement.Description:
        base = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
        return cats.CATS(base, ["az", "be"], **options)._describe_settings()  # type: ignore[arg-type]

    assert agreement._digest(described()) == agreement._digest(described())
    assert described() != described(epsilon=math.nextafter(1e-3, 1)) != described(epsilon=1e-3)
    here = described()
    wrong = self_check.Kernel("native", "gram", torch.device("cpu"), (torch.float32,), True, 2)
    monkeypatch.setattr(self_check, "_found", {wrong: "the Gram matrix is wrong"})
    assert described() != here  # one process computes with other kernels than the others
    assert described(backend="reference")["kernels"] == "'reference'"
    assert agreement._exact([math.nan, object(), {"a": (1, None)}]) == "[nan, object, {a: [1, None]}]"
