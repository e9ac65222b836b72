"""The prefix cache: networks that go on from kept states give what they give without, in one position a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.integrations.causal import Causal, from_causal
from guidekit.models.prefixes import Prefixes, Tree
from guidekit.zoo.nets import OrderedNet, PrefixNet

V, L = 7, 9
N = 24


def bundled(kind: str) -> Any:
    torch.manual_seed(0)
    net = OrderedNet(V, L, 2, 64, 2) if kind == "masks" else PrefixNet(V, L, (2, 3), 64, 2)
    return net.double().eval().requires_grad_(False)


def conditions(kind: str) -> Tensor:
    g = torch.Generator().manual_seed(1)
    one, two = torch.randint(0, 3, (N,), generator=g), torch.randint(0, 4, (N,), generator=g)
    return one if kind == "masks" else torch.stack([one, two], 1)


@pytest.mark.parametrize("names", ["told apart", "all the same"])
@pytest.mark.parametrize("kind", ["masks", "tokens"])
def test_rows_that_move_find_their_states_whatever_their_lengths_and_conditions(
    kind: str, names: str, monkeypatch: pytest.MonkeyPatch
):
    """Rows are resampled and grow between calls; if all names collide, nothing false is found either."""
    if names == "all the same":
        monkeypatch.setattr(Tree, "names", lambda self, root, text: torch.zeros_like(text))
    net, cond, row, t = bundled(kind), conditions(kind), torch.arange(N), torch.ones(N)
    cached, g = Prefixes(net, end=0), torch.Generator().manual_seed(2)
    length = torch.randint(0, 5, (N,), generator=g)
    x = torch.where(torch.arange(L) < length[:, None], torch.randint(1, V, (N, L), generator=g), V)
    for _ in range(4):
        exact, found = (v(x, t, cond)[row, length] for v in (net, cached))
        torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-10)
        old = torch.randint(0, N, (N,), generator=g)
        x, cond, length = x[old], cond[old], length[old]
        x[row, length] = torch.randint(1, V, (N,), generator=g)
        length = length + 1


def test_equal_texts_under_two_conditions_are_two():
    net = bundled("tokens")
    cached, x = Prefixes(net, end=0), torch.tensor([[1, 2, 3, *[V] * (L - 3)]] * 2)
    for cond in (torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, 2], [0, 1]]), torch.tensor([[1, 1], [0, 1]])):
        exact, found = (v(x, torch.ones(2), cond)[:, 3] for v in (net, cached))
        torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-10)
        assert not torch.allclose(exact[0], exact[1])


def test_a_name_that_leads_to_another_text_leads_to_nothing():
    """The names of all nodes are exchanged, so that every row meets a node of another text: it does not take its
    states, and logits are the same."""
    net, cond, g = bundled("tokens"), conditions("tokens"), torch.Generator().manual_seed(3)
    x, t, cached = torch.randint(1, V, (N, L), generator=g), torch.ones(N), Prefixes(net, end=0)
    x[:, 4:] = V
    cached(x, t, cond)
    tree, full = cached.tree, cached.tree.count
    assert full > 2 * N
    tree.columns[0, :full] = tree.columns[0, :full].roll(5)
    tree.settle()
    exact, again = (v(x, t, cond)[:, 4] for v in (net, cached))
    torch.testing.assert_close(again, exact, atol=1e-12, rtol=1e-10)
    assert tree.count > full  # they were computed again


def test_states_of_another_text_are_found_by_verify():
    net, cond, g = bundled("tokens"), conditions("tokens"), torch.Generator().manual_seed(3)
    x, cached = torch.randint(1, V, (N, L), generator=g), Prefixes(net, end=0)
    cached.verify(x, cond)
    assert cached.tree.states is not None
    cached.tree.states[: cached.tree.count] = cached.tree.states[: cached.tree.count].roll(5, 0)
    with pytest.raises(gk.NetworkError, match=r"do not belong to their text: before token \d of row \d.*`extend` must"):
        cached.verify(x, cond)

    class Forgets(PrefixNet):
        """Its states are those of the text without the token that they were asked for."""

        def extend(self, tokens: Tensor, kept: Tensor | None, cond: Any) -> tuple[Tensor, Tensor]:
            logits, states = super().extend(tokens, kept, cond)
            return logits, torch.zeros_like(states)

    torch.manual_seed(0)
    wrong = Forgets(V, L, (2, 3), 64, 2).double().eval().requires_grad_(False)
    with pytest.raises(gk.NetworkError, match="before token 1 of row 0, 1, 2"):
        Prefixes(wrong, end=0).verify(x, cond)


def test_what_follows_the_next_token_is_the_end_or_open():
    net = bundled("masks")
    x = torch.tensor([[3, 2, *[V] * (L - 2)], [3, 0, *[V] * (L - 2)], [2] * L])
    cond = torch.zeros(3, dtype=torch.long)
    with_end = Prefixes(net, end=0)(x, torch.ones(3), cond).softmax(-1)
    assert torch.equal(with_end.argmax(-1)[:, :2], x[:, :2]) and (with_end[:2, 3:, 0] == 1).all()
    assert with_end[1, 2, 0] == 1 and torch.equal(with_end[2].argmax(-1), x[2])  # an ended text, and a whole one
    open_ = Prefixes(net)(x, torch.ones(3), cond).softmax(-1)
    torch.testing.assert_close(open_[0, 3:], torch.full((L - 3, V), 1 / V, dtype=torch.float64))
    torch.testing.assert_close(open_[0, 2], with_end[0, 2])


# causal language models ------------------------------------------------------------------------------------------


def llama(seed: int = 0) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    return _strong(transformers.LlamaForCausalLM(config))


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=0
    )
    return _strong(transformers.GPT2LMHeadModel(config))


def _strong(net: Any) -> Any:
    """Weights so large that predictions depend on the text."""
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.mul_(8)
    return net.double().eval()


def uncached(net: Any, length: int) -> gk.MaskedModel:
    """The same model, with the whole text evaluated in every step; conditions are prompts of two ids."""

    def logits(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        first = (x == V).int().argmax(1)
        text = torch.cat([cond, x.clamp(max=V - 1)], 1)
        out = torch.full((*x.shape, V), -1e4, dtype=torch.float64)
        out[..., 0] = 0
        row = torch.arange(len(x))
        out[row, first] = net(input_ids=text).logits[row, first + cond.shape[1] - 1]
        known = torch.arange(length) < first[:, None]
        return torch.where(known[..., None], torch.nn.functional.one_hot(x.clamp(max=V - 1), V) * 1e4, out)

    return gk.MaskedModel(logits, V, length, None, torch.tensor, ordered=True, end=0, alone=True)


def reward(x: Tensor) -> Tensor:
    return (x == 3).sum(1).double() - 0.3 * (x == 5).sum(1)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_steered_run_equals_the_one_that_evaluates_whole_texts(make: Any):
    """Rows move by resampling, of two prompts with groups of their own."""
    net = make()
    guides = [gk.FKSteering(reward, 0.5, ess=1.0)]
    run: dict[str, Any] = {"steps": 6, "guides": guides, "cond": [(1, 4), (2, 3)], "seed": 3}
    found = gk.sample(from_causal(net, 6, prompt=5), 16, **run)
    exact = gk.sample(uncached(net, 6), 16, **run)
    assert torch.equal(found.x, exact.x) and torch.equal(found.ancestors, exact.ancestors)
    torch.testing.assert_close(found.log_weights, exact.log_weights)
    assert found.cost.network_rows == exact.cost.network_rows
    moved = found.ancestors != torch.arange(32)
    assert int(moved.sum()) > 20 and len(found.x.unique(dim=0)) > 5


def test_a_step_evaluates_one_position_of_each_row_and_prompts_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int, int]] = []
    extend = Causal.extend

    def watched(self: Causal, tokens: Tensor, kept: Tensor | None, cond: Any) -> tuple[Tensor, Tensor]:
        seen.append((len(tokens), tokens.shape[1], 0 if kept is None else kept.shape[1]))
        return extend(self, tokens, kept, cond)

    monkeypatch.setattr(Causal, "extend", watched)
    model = from_causal(llama(), 6, end=0, prompt=5)
    cost = gk.sample(model, 12, steps=6, cond=[(1, 4, 2)], seed=1).cost
    assert seen[0] == (1, 3, 0)  # rows that are equal are one
    assert [(k, kept) for _, k, kept in seen[1:]] == [(1, 3 + i) for i in range(len(seen) - 1)]
    assert sum(rows for rows, _, _ in seen) == cost.network_rows


def test_the_memory_is_bounded_and_changes_nothing():
    net = llama()
    run: dict[str, Any] = {"steps": 6, "cond": [(1, 4)], "seed": 3}
    whole, small = from_causal(net, 6, prompt=5), from_causal(net, 6, prompt=5, limit=4096)
    a, b = gk.sample(whole, 16, **run), gk.sample(small, 16, **run)
    assert torch.equal(a.x, b.x)
    assert 0 < small.net.bytes <= 4096 < whole.net.tree.count * 2 * 2 * 2 * 4 * 8 <= whole.net.bytes
    assert torch.equal(gk.sample(whole, 16, **run).x, a.x)  # all is kept already
    other = copy.deepcopy(whole)
    assert other.net.bytes == 0 and torch.equal(gk.sample(other, 16, **run).x, a.x)
    whole.net.forget()
    assert whole.net.bytes == 0


def test_states_of_other_weights_are_not_used():
    net, other = llama(), llama(5)
    model = from_causal(net, 6, prompt=5)
    before = gk.sample(model, 16, steps=6, seed=2).x
    net.load_state_dict(other.state_dict())
    assert not torch.equal(gk.sample(model, 16, steps=6, seed=2).x, before)
    assert torch.equal(gk.sample(model, 16, steps=6, seed=2).x, gk.sample(from_causal(other, 6), 16, steps=6, seed=2).x)


def test_texts_go_in_and_come_out():
    class Letters:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + ["\n^abcde".index(c) for c in text]}

        def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = False) -> list[str]:
            return ["".join("\n^abcde"[v] for v in row) for row in rows]

    model = from_causal(llama(), 6, tokenizer=Letters(), prompt=4)
    result = gk.sample(model, 4, steps=6, cond=["ab", "d"])
    assert len(result.samples) == 8 and not any("\n" in text for text in result.samples)
    assert torch.equal(model.read(["abc"]), torch.tensor([[2, 3, 4, 0, 0, 0]]))
    assert model.decode(model.read(["abc", "ed"])) == ["abc", "ed"]
    with pytest.raises(ValueError, match="it has 7 tokens, and samples have 6"):
        model.read(["abcabca"])
    with pytest.raises(ValueError, match=r"prompt 'abcd' has 5 tokens, and 1 to 4 are taken"):
        gk.sample(model, 2, steps=6, cond="abcd")
    with pytest.raises(ValueError, match="5 steps: this model draws one token at a time, and has 6"):
        gk.sample(model, 2, steps=5)
    with pytest.raises(TypeError, match="takes a causal language model of transformers, not Linear"):
        from_causal(torch.nn.Linear(2, 2), 6)


def test_bundled_molecules_without_what_lies_ahead_are_the_same():
    models = [gk.zoo.load("molecules", ahead=ahead) for ahead in (True, False)]
    a, b = (gk.sample(model, 4, steps=20, cond=0, seed=5) for model in models)
    assert a.samples == b.samples and a.cost.network_rows == b.cost.network_rows
    with pytest.raises(ValueError, match="ahead=False is for models that draw from the left, and 'dna' draws in any"):
        gk.zoo.load("dna", ahead=False)
