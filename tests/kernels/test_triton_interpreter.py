"""Does the repaired interpreter compute bfloat16 rightly, and does it catch planted faults?"""

import pytest
import torch
import triton_samples as samples
from triton.runtime.errors import InterpreterError

BF16 = torch.bfloat16


def test_products_of_bfloat16():
    a, b = torch.randn(2, 16, 16).to(BF16)
    out = torch.empty(16, 16)
    samples.bf16_product[(1,)](a, b, out, 16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-6, atol=1e-6)


def test_casts_round_to_nearest_even():
    patterns = torch.randint(-(2**31), 2**31, (1 << 12,), dtype=torch.int64).to(torch.int32)
    ties = ((patterns >> 16) << 16) | 0x8000
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1e-45])
    values = torch.cat([patterns.view(torch.float32), ties.view(torch.float32), special])
    values = torch.nn.functional.pad(values, (0, (1 << 14) - len(values)))
    out = torch.empty(len(values), dtype=BF16)
    samples.cast[(1,)](values, out, len(values))
    torch.testing.assert_close(out, values.to(BF16), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(len(values))
    samples.cast[(1,)](out, back, len(values))
    torch.testing.assert_close(back, out.float(), rtol=0, atol=0, equal_nan=True)


def test_casts_between_16_bit_types():
    values = torch.randn(64).half()
    out = torch.empty(64, dtype=BF16)
    samples.cast[(1,)](values, out, 64)
    assert torch.equal(out, values.to(BF16))


def test_arithmetic_on_bfloat16_is_refused():
    with pytest.raises(InterpreterError, match="convert to float32 first"):
        samples.bf16_sum[(1,)](torch.ones(16, dtype=BF16), torch.ones(16, dtype=BF16), 16)


@pytest.mark.parametrize(("loads", "stores", "fault"), [(11, 10, "load"), (10, 11, "store")])
def test_an_address_past_the_end_is_caught(loads, stores, fault):
    memory = torch.arange(100.0)  # what lies behind is memory of the process
    given, out = memory[:10], torch.zeros(10)
    samples.copy[(1,)](given, out, 10, 10, 16)
    assert torch.equal(out, given)
    with pytest.raises(InterpreterError, match=f"copy: {fault} of program .*: 1 of 11 addresses"):
        samples.copy[(1,)](given, out, loads, stores, 16)


def test_programs_run_in_another_order_each_time():
    seen = set()
    for _ in range(8):
        out = torch.zeros(1, dtype=torch.int32)
        samples.who_came_last[(8,)](out)
        seen.add(out.item())
    assert len(seen) > 1


def passed_around(meet):
    values, counter = torch.zeros(2 * 7, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    samples.pass_around[(7,)](values, counter, 10, meet)
    assert not meet or counter.item() == 70
    return values[7:].tolist()


def test_programs_that_meet_see_what_the_others_stored():
    for _ in range(5):
        assert passed_around(meet=True) == [10] * 7


def test_a_missing_meeting_is_caught():
    assert any(passed_around(meet=False) != [10] * 7 for _ in range(5))


def test_programs_that_wait_for_ever_are_reported():
    with pytest.raises(InterpreterError, match=r"wait_for_nobody: programs wait .* for ever"):
        samples.wait_for_nobody[(3,)](torch.zeros(1, dtype=torch.int64))
