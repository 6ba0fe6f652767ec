"""Do the autoencoders compute what their equations say, for any size of image and any length?"""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from bptt.models.autoencoder import Autoencoder
from bptt.models.convolutional import ConvolutionalAutoencoder, rectangles
from bptt.models.denoising import DenoisingAutoencoder, masking, salt_pepper
from bptt.models.reconstruction import Reconstructing, share_kept
from bptt.models.recurrent import recurrent
from bptt.models.recurrent_autoencoder import RecurrentAutoencoder
from bptt.models.recurrent_variational import RecurrentVariationalAutoencoder
from bptt.models.sparse import SparseAutoencoder
from bptt.models.variational import VariationalAutoencoder, divergence
from bptt.tasks.image_task import area

IMAGES = {
    "undercomplete": Autoencoder,
    "denoising": DenoisingAutoencoder,
    "sparse": lambda h, w, **kw: SparseAutoencoder(h, w, sparsity="l1", **kw),
    "sparse-kl": lambda h, w, **kw: SparseAutoencoder(h, w, sparsity="kl", **kw),
    "sparse-k": lambda h, w, **kw: SparseAutoencoder(h, w, sparsity="k", active=3, **kw),
    "variational": VariationalAutoencoder,
    "convolutional": ConvolutionalAutoencoder,
}
SEQUENCES = {
    "plain": RecurrentAutoencoder,
    "variational": RecurrentVariationalAutoencoder,
}


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (25, 25), (5, 1)])
@pytest.mark.parametrize("name", IMAGES)
def test_images_come_back_in_their_size(name, size):
    model = IMAGES[name](*size, code=6)
    x = torch.rand(4, *size)
    assert model.reconstruct(x).shape == x.shape
    assert model.errors(x).shape == (4,)
    loss = torch.stack(list(model.losses(x).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_losses_are_negative_log_likelihoods(loss):
    model = Reconstructing(loss)
    raw, x = torch.randn(3, 5), torch.rand(3, 5)
    if loss == "mse":
        # (x̂ - x)² is -log N(x; x̂, 1/2) but for a constant
        one = Normal(raw, 0.5**0.5)
        wanted = one.log_prob(raw) - one.log_prob(x)
    else:
        wanted = -(x * Bernoulli(logits=raw).log_prob(torch.ones(3, 5)))
        wanted -= (1 - x) * Bernoulli(logits=raw).log_prob(torch.zeros(3, 5))
    torch.testing.assert_close(model.value_losses(raw, x), wanted)
    torch.testing.assert_close(model.values(raw), raw if loss == "mse" else raw.sigmoid())


def test_a_denoising_loss_is_held_against_the_clean_image():
    model = DenoisingAutoencoder(8, 8, noise="masking", amount=1.0)  # all of the input is 0
    x = torch.rand(4, 8, 8)
    blank = model.reconstruct(torch.zeros_like(x))
    torch.testing.assert_close(model.losses(x)["reconstruction"], (blank - x).square().mean())


def test_noises_hit_their_share():
    x = torch.full((400, 400), 0.5)
    torch.testing.assert_close((masking(x, 0.3) == 0).float().mean().item(), 0.3, atol=0.01, rtol=0)
    noisy = salt_pepper(x, 0.4)
    for value, share in ((0.0, 0.2), (1.0, 0.2), (0.5, 0.6)):
        found = (noisy == value).float().mean().item()
        assert found == pytest.approx(share, abs=0.01)


def test_k_sparse_codes_have_k_active_units():
    model = SparseAutoencoder(8, 8, code=50, sparsity="k", active=5)
    code = model.encoder(torch.rand(20, 8, 8))
    assert ((code > 0).sum(1) <= 5).all()
    active, dormant = model.activity(torch.rand(20, 8, 8))
    assert 0 < active < 0.11
    assert 0 <= dormant < 1


def test_sparsity_divergence_is_that_of_two_coins():
    model = SparseAutoencoder(4, 4, sparsity="kl", target=0.1)
    mean = torch.tensor([0.02, 0.1, 0.7])
    wanted = kl_divergence(Bernoulli(torch.tensor(0.1)), Bernoulli(mean))
    torch.testing.assert_close(model.divergence(mean), wanted)
    assert model.divergence(torch.tensor([0.0, 1.0])).isfinite().all()


def test_divergence_from_the_prior():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    wanted = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), wanted)


def test_the_bound_is_below_the_likelihood():
    """Against the evidence itself, by importance sampling: log mean of p(x|z) p(z) / q(z|x)."""
    model = VariationalAutoencoder(3, 3, code=2, hidden=(8,)).eval()
    x = torch.rand(4, 3, 3).round()
    mean, log_variance = model.encoder(x)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    weights, bounds = [], []
    for _ in range(2000):
        z = posterior.sample()
        likelihood = -model.value_losses(model.decoder(z), x).flatten(1).sum(1)
        weights.append(likelihood + (Normal(0.0, 1.0).log_prob(z) - posterior.log_prob(z)).sum(1))
        reconstruction, far = model.bound(x)
        bounds.append(-reconstruction - far)
    evidence = torch.stack(weights).logsumexp(0) - torch.tensor(2000.0).log()
    bound = torch.stack(bounds).mean(0)
    assert (bound < evidence).all()
    torch.testing.assert_close(bound, torch.stack(weights).mean(0), atol=0.2, rtol=0)


def test_samples_and_interpolations():
    model = VariationalAutoencoder(6, 5, code=2).eval()
    assert model.sample(7).shape == (7, 6, 5)
    x = torch.rand(2, 6, 5)
    line = model.interpolate(x[0], x[1], 5)
    torch.testing.assert_close(line[[0, -1]], model.reconstruct(x))


def test_holes_are_rectangles_of_the_right_size():
    holes = 1 - rectangles(torch.rand(200, 9, 14), 0.5)
    heights, widths = holes.amax(2).sum(1), holes.amax(1).sum(1)
    assert (heights == 4).all()
    assert (widths == 7).all()
    assert (holes.sum((1, 2)) == 28).all()
    assert holes.amax(0).min() == 1  # anywhere in the image


def test_filling_keeps_what_is_seen():
    model = ConvolutionalAutoencoder(9, 14)
    x = torch.rand(3, 9, 14)
    mask = rectangles(x, 0.4)
    filled = model.fill(x, mask)
    assert torch.equal(filled[mask == 1], x[mask == 1])
    hidden = model.fill(x.where(mask == 1, torch.rand_like(x)), mask)
    assert torch.equal(hidden, filled)  # nothing of the hole gets through


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_do_not_see_past_their_lengths(name, cell, bidirectional):
    model = SEQUENCES[name](3, 4, 8, cell, 2, bidirectional).eval()
    x, lengths = torch.randn(5, 9, 3), torch.tensor([9, 1, 4, 7, 2])
    other = x.clone()
    for row, length in zip(other, lengths.tolist(), strict=True):
        row[length:] = 1e3
    torch.testing.assert_close(model.errors(other, lengths), model.errors(x, lengths))
    for key, value in model.losses(x, lengths).items():
        torch.testing.assert_close(model.losses(other, lengths)[key], value)
    alone = model.errors(x[2:3, :4])
    torch.testing.assert_close(model.errors(x, lengths)[2:3], alone)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_both_implementations_agree(cell):
    ours = recurrent(cell, 3, 5, layers=2, bidirectional=True)
    theirs = recurrent(cell, 3, 5, layers=2, bidirectional=True, impl="torch")
    theirs.layer.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(4, 6, 3), torch.tensor([2, 6, 1, 5])
    for kwargs in ({}, {"lengths": lengths}):
        got, wanted = ours(x, **kwargs), theirs(x, **kwargs)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_models_take_gradients(name):
    model = SEQUENCES[name](3, 4, 8)
    torch.stack(list(model.losses(torch.randn(5, 9, 3)).values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compression_is_values_over_values():
    assert share_kept((28, 28), 32) == 24.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autoencoder(8, 8, loss="mae"), "loss must be mse or bce, got 'mae'"),
        (lambda: DenoisingAutoencoder(8, 8, noise="rain"), "noise must be one of gaussian, m"),
        (lambda: DenoisingAutoencoder(8, 8, amount=-1), "amount of gaussian noise is out of range"),
        (lambda: DenoisingAutoencoder(8, 8, noise="masking", amount=1.5), "amount of masking"),
        (lambda: SparseAutoencoder(8, 8, sparsity="l0"), "sparsity must be l1, kl or k"),
        (lambda: SparseAutoencoder(8, 8, 4, sparsity="k", active=5), r"active must be in 1\.\.4"),
        (lambda: SparseAutoencoder(8, 8, target=1.0), "target must lie between 0 and 1"),
        (lambda: SparseAutoencoder(8, 8, weight=-1), "weight must be at least 0"),
        (lambda: VariationalAutoencoder(8, 8, beta=-1), "beta must be at least 0"),
        (lambda: ConvolutionalAutoencoder(8, 8, masked=1.0), "masked must be at least 0 and below"),
        (lambda: RecurrentAutoencoder(3, cell="tanh"), "cell must be one of rnn, gru, lstm"),
        (lambda: RecurrentAutoencoder(3, impl="jax"), "impl must be bptt or torch"),
        (lambda: RecurrentVariationalAutoencoder(3, beta=-1), "beta must be at least 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_large_anomaly_scores_stay_apart():
    scores = torch.tensor([1e3, 2e3, 3e3, 4e3])
    assert area(scores, torch.tensor([False, True, False, True])) == pytest.approx(0.75)
