"""Every request draws by its own temperature, top_p and seed."""

from typing import Any

import pytest
import torch

from workers.engine.request import Sampling
from workers.engine.sampler import Sampler, SampleRequest, SamplingState

LOGITS_V = torch.tensor([0.1, 2.0, 1.0, -3.0, 1.5])


def draw(count: int = 4000, **settings: Any) -> torch.Tensor:
    """How often each token is drawn over `count` positions, as shares."""
    sampling = Sampling(max_tokens=1, **settings)
    sampler = Sampler()
    sampler.requests = [
        SampleRequest(SamplingState(sampling), position) for position in range(count)
    ]
    picked = sampler(torch.zeros(count), LOGITS_V.repeat(count, 1)).argmax(-1)
    return torch.bincount(picked, minlength=5) / count


def test_shares_follow_the_softmax_at_the_requests_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        wanted = (LOGITS_V / temperature).softmax(-1)
        assert (draw(temperature=temperature) - wanted).abs().max() < 0.03


def test_top_p_keeps_the_likeliest_tokens_and_their_proportions() -> None:
    probabilities = LOGITS_V.softmax(-1)
    shares = draw(top_p=0.7)
    assert shares[[0, 2, 3]].sum() == 0
    assert shares[1] == pytest.approx(
        float(probabilities[1] / (probabilities[1] + probabilities[4])), abs=0.03
    )
    assert draw(top_p=1e-9)[1] == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    assert draw(temperature=temperature)[1] == 1


def test_one_batch_mixes_settings_and_rows_without_a_token() -> None:
    sampler = Sampler()
    hot = Sampling(max_tokens=1, temperature=2.0, seed=1)
    cold = Sampling(max_tokens=1, temperature=0.0)
    for position in range(50):
        sampler.requests = [
            SampleRequest(SamplingState(hot), position),
            SampleRequest(SamplingState(cold), position),
        ]
        scores_NV = sampler(torch.zeros(3), LOGITS_V.repeat(3, 1))
        alone = Sampler()
        alone.requests = [SampleRequest(SamplingState(hot), position)]
        assert scores_NV[0].argmax() == alone(torch.zeros(1), LOGITS_V[None])[0].argmax()
        assert scores_NV[1].argmax() == scores_NV[2].argmax() == 1


def test_the_seed_and_the_position_decide() -> None:
    first, again, other = (
        SampleRequest(SamplingState(Sampling(max_tokens=1, seed=seed)), 7) for seed in (3, 3, 4)
    )
    assert first.uniform() == again.uniform() != other.uniform()
    assert SampleRequest(first.state, 8).uniform() != first.uniform()


def test_top_k_keeps_so_many_and_top_p_counts_among_them() -> None:
    probabilities = LOGITS_V.softmax(-1)
    shares = draw(top_k=2)
    assert shares[[0, 2, 3]].sum() == 0
    wanted = float(probabilities[1] / (probabilities[1] + probabilities[4]))
    assert shares[1] == pytest.approx(wanted, abs=0.03)
    assert draw(top_k=1)[1] == 1
    assert draw(top_k=2, top_p=wanted - 0.01)[1] == 1
    assert (draw(top_k=10**6) - draw()).abs().max() == 0


def test_log_probabilities_are_the_models_own() -> None:
    sampler = Sampler()
    wants = SamplingState(Sampling(max_tokens=1, temperature=2.0, top_k=1, logprobs=3))
    plain = SamplingState(Sampling(max_tokens=1))
    bare = SamplingState(Sampling(max_tokens=1, logprobs=0))
    sampler.requests = [SampleRequest(wants, 1), SampleRequest(plain, 1), SampleRequest(bare, 1)]
    drawn = sampler(torch.zeros(3), LOGITS_V.repeat(3, 1)).argmax(-1).tolist()
    logprobs = LOGITS_V.log_softmax(-1).tolist()
    [told], [alone] = wants.logprobs, bare.logprobs
    assert told.token == drawn[0] == 1
    assert told.logprob == pytest.approx(logprobs[1])
    assert [token for token, _ in told.top] == [1, 4, 2]
    assert [value for _, value in told.top] == pytest.approx([logprobs[i] for i in (1, 4, 2)])
    assert (alone.token, alone.top) == (drawn[2], ())
    assert not plain.logprobs


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_fails_alone(bad: float) -> None:
    sampler = Sampler()
    states = [SamplingState(Sampling(max_tokens=1, temperature=t, seed=5)) for t in (0, 1, 1)]
    scores_NV = LOGITS_V.repeat(3, 1)
    scores_NV[1, 3] = bad
    sampler.requests = [SampleRequest(one, 1) for one in states]
    picked = sampler(torch.zeros(3), scores_NV).argmax(-1)
    assert [one.error.code if one.error else None for one in states] == [None, "non_finite", None]
    alone = Sampler()
    alone.requests = [SampleRequest(states[2], 1)]
    assert picked[0] == 1
    assert picked[2] == alone(torch.zeros(1), LOGITS_V[None]).argmax()


def test_numbers_that_are_not_finite_come_before_a_schema_that_errs() -> None:
    """What a version is to blame for is not put on the request."""

    class Ended:
        error = "it has come to its end"

        def allowed(self) -> torch.Tensor:
            return torch.zeros(5, dtype=torch.bool)

    sampler = Sampler()
    states = [SamplingState(Sampling(max_tokens=1), Ended()) for _ in range(2)]  # type: ignore[arg-type]
    scores_NV = LOGITS_V.repeat(2, 1)
    scores_NV[0, 3] = float("nan")
    sampler.requests = [SampleRequest(one, 1) for one in states]
    sampler(torch.zeros(2), scores_NV)
    told = [(one.error.status, one.error.code) for one in states if one.error]
    assert told == [(500, "non_finite"), (400, "invalid_schema")]


def test_large_numbers_are_finite() -> None:
    sampler = Sampler()
    state = SamplingState(Sampling(max_tokens=1, temperature=0.0))
    sampler.requests = [SampleRequest(state, 1)]
    picked = sampler(torch.zeros(1), torch.tensor([[3e38, 3e38, 3.1e38, 1.0]])).argmax()
    assert (int(picked), state.error) == (2, None)
