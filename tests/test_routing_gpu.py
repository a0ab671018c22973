"""Routing by routing.cu: by OpenCL, in the emulator (barriers and shuffles count), and on a GPU
where there is one."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator import emulated
from torch import Tensor

from community.kernels.build import BuildError, simt_program
from community.kernels.cuda import PLENTY
from community.kernels.dispatch import combine, dispatch
from community.kernels.routing import Route, arranged, reference, route
from community.kernels.routing_gpu import EACH, MOST, ONE, Router, _Sort, router

# tokens, experts, choices: one block and several, whole lines of threads and parts of one
SIZES = [(1, 1, 1), (3, 5, 5), (40, 8, 2), (33, 70, 9), (64, 64, 8), (150, 40, 40), (700, 8, 2)]


@pytest.fixture(params=["opencl", "emulator", "cuda"])
def made(request: pytest.FixtureRequest) -> tuple[Router, str]:
    if request.param == "cuda":
        request.getfixturevalue("gpu")
        found = router(torch.device("cuda"), 8, 2, 8)
        assert found is not None
        return found, "cuda"
    try:
        flag = "-DTHREADS=64"
        program = emulated("routing", flag) if request.param == "emulator" else None
        return Router(program or simt_program("routing", (flag,)), 64), "cpu"
    except BuildError as error:
        pytest.skip(str(error))


def logits_of(n: int, e: int) -> Tensor:
    return 3 * torch.randn(n, e, generator=torch.Generator().manual_seed(n + e))


@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_reference(
    size: tuple[int, int, int], sigmoid: bool, steered: bool, made: tuple[Router, str]
) -> None:
    (n, e, k), (ours, device) = size, made
    logits = logits_of(n, e)
    bias = torch.linspace(-0.2, 0.2, e) if steered else None
    moved = None if bias is None else bias.to(device)
    weights, experts, order, fault = ours.route(logits.to(device), moved, k, sigmoid)
    scoring = "sigmoid" if sigmoid else "softmax"
    wide = reference(logits.double(), k, None if bias is None else bias.double(), scoring)
    assert fault == 0
    scores = logits.double().sigmoid() if sigmoid else logits.double().softmax(-1)
    keys = scores if bias is None else scores + bias
    near = [keys.gather(1, chosen.cpu()) for chosen in (experts, wide.experts)]
    torch.testing.assert_close(*near, atol=1e-6, rtol=0)  # rounding may exchange equals
    if experts.cpu().equal(wide.experts):
        torch.testing.assert_close(weights.cpu().double(), wide.weights, atol=1e-6, rtol=1e-5)
    sorted_ = arranged(experts.cpu(), weights.cpu(), e)
    for a, b in zip(order, sorted_[2:], strict=True):
        assert a.cpu().equal(b)


def test_there_are_sizes_for_one_block_and_for_several() -> None:
    pairs = [n * k for n, _, k in SIZES]
    assert min(pairs) < EACH < ONE < max(pairs)


@pytest.mark.parametrize("k", [1, 8, 100, MOST // 2])
def test_every_gpu_has_the_shared_memory(k: int, made: tuple[Router, str]) -> None:
    """With the most experts that `router` lets through, and as many threads as on a GPU."""
    ours, count = Router(made[0].program, 512), MOST - k
    for n in (1, 700):
        sort = _Sort(ours, torch.zeros(n, k, dtype=torch.int64), count, k)
        assert 4 * ours.room(sort, k) <= PLENTY


def test_the_lower_expert_is_first_among_equals(made: tuple[Router, str]) -> None:
    ours, device = made
    for bias in (None, torch.zeros(40, device=device)):
        _, experts, _, _ = ours.route(torch.zeros(50, 40, device=device), bias, 20, True)
        assert experts.cpu().equal(torch.arange(20).repeat(50, 1))


@pytest.mark.parametrize("n", [5, 900])
def test_what_is_not_finite_is_found(n: int, made: tuple[Router, str]) -> None:
    ours, device = made
    for value in (float("nan"), float("inf"), -float("inf")):
        logits, bias = torch.zeros(n, 9, device=device), torch.zeros(9, device=device)
        logits[n - 1, 8] = value
        assert ours.route(logits, None, 2, False)[3] == 1
        logits[n - 1], bias[8] = 0, value
        assert ours.route(logits, bias, 2, False)[3] == 2
        assert ours.route(logits[:, :9].fill_(value), None, 9, True)[3] == 1


@pytest.mark.parametrize("n", [6, 900])
def test_experts_chosen_elsewhere_are_sorted(n: int, made: tuple[Router, str]) -> None:
    ours, device = made
    experts = torch.randint(7, (n, 3), generator=torch.Generator().manual_seed(n))
    order, fault = ours.order(experts.to(device), 7)
    expected = arranged(experts, experts.float(), 7)
    assert fault == 0
    assert all(a.cpu().equal(b) for a, b in zip(order, expected[2:], strict=True))
    for stray in (-1, 7, 2**40):
        experts[n // 2, 1] = stray
        assert ours.order(experts.to(device), 7)[1] == 1


def test_on_a_gpu_it_is_what_route_calls(gpu: str) -> None:
    logits = logits_of(90, 12).cuda().requires_grad_()
    found = route(logits, 3)
    expected = reference(logits.detach().cpu().double().requires_grad_(), 3)
    assert found.experts.cpu().equal(expected.experts)
    x = torch.randn(90, 16, device="cuda")
    torch.testing.assert_close(combine(dispatch(x, found), found), x)
    with pytest.raises(ValueError, match="logits must be finite"):
        route(logits.detach() * float("nan"), 3)
    with pytest.raises(ValueError, match="between 0 and 11"):
        arranged(found.experts + 10, found.weights.detach(), 12)
    stray: Route = found._replace(place=found.place + 1, order=found.order - 1)
    for move in (lambda: dispatch(x, stray), lambda: combine(x.repeat(3, 1), stray)):
        with pytest.raises(ValueError, match="names a pair"):
            move()
