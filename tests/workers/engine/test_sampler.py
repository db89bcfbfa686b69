"""Every request draws by its own temperature, top_p and seed."""

import pytest
import torch

from workers.engine.request import Sampling
from workers.engine.sampler import Draw, Sampler

LOGITS_V = torch.tensor([0.1, 2.0, 1.0, -3.0, 1.5])


def draw(count: int = 4000, **settings: float) -> torch.Tensor:
    """How often each token is drawn over `count` positions, as shares."""
    sampling = Sampling(max_tokens=1, **settings)
    sampler = Sampler()
    sampler.draws = [Draw(sampling, position) for position in range(count)]
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
        sampler.draws = [Draw(hot, position), Draw(cold, position)]
        scores_NV = sampler(torch.zeros(3), LOGITS_V.repeat(3, 1))
        alone = Sampler()
        alone.draws = [Draw(hot, position)]
        assert scores_NV[0].argmax() == alone(torch.zeros(1), LOGITS_V[None])[0].argmax()
        assert scores_NV[1].argmax() == scores_NV[2].argmax() == 1


def test_the_seed_and_the_position_decide() -> None:
    first, again, other = (Draw(Sampling(max_tokens=1, seed=seed), 7) for seed in (3, 3, 4))
    assert first.uniform() == again.uniform() != other.uniform()
    assert Draw(first.sampling, 8).uniform() != first.uniform()
