"""Masked diffusion modules in the style of Hugging Face, on small ones whose law is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.integrations.mdlm import from_mdlm, log_noise

P = torch.tensor([0.1, 0.2, 0.0, 0.7])  # of the tokens 1, 2, 3, 4; the mask is 0
MASK = 0


class Small(nn.Module):
    """Position 0 is drawn from P; position 1 repeats it once it is known. Logits are over all ids, the mask's high."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=5, mask_token_id=MASK)
        self.table = nn.Parameter(torch.cat([torch.tensor([9.0]), P.clamp(min=1e-20).log()]))
        self.told: list[float] = []

    def forward(self, input_ids, timesteps):
        self.told.append(float(timesteps[0]))
        logits = self.table.expand(*input_ids.shape, 5).clone()
        for here, there in ((0, 1), (1, 0)):
            known = input_ids[:, there] != MASK
            logits[known, here] = -40.0 + 80.0 * nn.functional.one_hot(input_ids[known, there], 5)
        return SimpleNamespace(logits=logits)


def test_the_mask_is_translated_and_never_drawn():
    """Frequencies of 4000 draws within four standard errors; pairs agree wherever one is known before the other."""
    net = Small()
    x = gk.sample(from_mdlm(net, 2), 4000, steps=40).samples
    share = torch.stack([(x[:, 0] == v).double().mean() for v in range(5)])
    assert share[MASK] == 0 and (share[1:] - P).abs().max() < 4 * 0.5 / 4000**0.5
    assert (x[:, 0] == x[:, 1]).double().mean() > 0.95
    assert net.told[0] == pytest.approx(float(log_noise(torch.tensor(1.0)))) and net.told[-1] < 0.1


def test_steering_follows_the_tilted_law():
    """A reward for the token 2 at alpha = 0.5: odds rise by e^2."""
    base = from_mdlm(Small(), 2)

    def reward(x):
        return (x[:, 0] == 2).double()

    result = gk.sample(base, 4000, steps=20, guides=[gk.FKSteering(reward, 0.5)])
    e2 = float(torch.tensor(2.0).exp())
    exact = 0.2 * e2 / (0.2 * e2 + 0.8)
    assert abs(float(result.weights @ reward(result.samples)) - exact) < 0.04
    assert abs(float(result.log_z) - torch.tensor(0.2 * e2 + 0.8).log()) < 0.1


def test_forbidden_tokens_are_not_drawn_and_a_tokenizer_reads():
    words = SimpleNamespace(
        mask_token_id=MASK, batch_decode=lambda ids, skip_special_tokens: ["".join("_abcd"[i] for i in r) for r in ids]
    )
    base = from_mdlm(Small(), 2, forbidden=[4], tokenizer=words)
    texts = gk.sample(base, 600, steps=10).samples
    assert set("".join(texts)) == {"a", "b"}
    share = sum(t[0] == "b" for t in texts) / 600
    assert abs(share - 2 / 3) < 4 * 0.5 / 600**0.5


def test_what_is_wrong_is_said():
    class Bare(nn.Module):
        def forward(self, x):
            return x.float()

    with pytest.raises(ValueError, match=r"vocab_size"):
        from_mdlm(Bare(), 2)
    with pytest.raises(ValueError, match=r"give mask="):
        from_mdlm(Bare(), 2, vocab_size=5)
    with pytest.raises(ValueError, match=r"ids of a vocabulary of 5"):
        from_mdlm(Bare(), 2, vocab_size=5, mask=5)
    with pytest.raises(ValueError, match=r"logits .rows, length, vocabulary. are needed"):
        gk.sample(from_mdlm(Bare(), 2, vocab_size=5, mask=4), 2, steps=2)
    with pytest.raises(TypeError, match=r"torch.nn.Module, not str"):
        from_mdlm("mdlm", 2)  # type: ignore[arg-type]
