"""The tests themselves are tested: a wrong sign, factor, time or gather in the engine makes one of them fail.

Every mutant is a copy of the packages with one line changed; the named tests must then fail (and, unchanged, pass).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

LAWS = "tests/conformance/test_laws.py"
UNBIASED = f"{LAWS}::test_the_weighted_law_and_z_are_unbiased_at_eight_particles"
STATE = f"{LAWS}::test_all_state_follows_its_particle"
GROUPS = f"{LAWS}::test_groups_equal_runs_of_their_own"
FK, CFG, HOOKS = "tests/test_fk.py", "tests/test_cfg.py", "tests/test_hooks.py"
ORDERED = "tests/test_ordered.py"
MORE = "tests/test_more_guidance.py"
KEEP = "tests/test_keep.py"
TABLES = "tests/test_solver_tables.py"
MEASURED = "tests/test_measurement_guides.py"
METHODS = "tests/test_measurement_methods.py"
CHECK = "tests/test_check.py"
NEWER = "tests/test_diffusers_newer.py"
FORBIDS = "tests/test_zoo_fragments.py::test_the_grammar_forbids"

MUTANTS = [
    ("a bandit that forgets slots without a call", "search/design/loop.py", 'row["trace"]["slots"][name] for', '(row["trace"]["shares"][name] > 0) * row["trace"]["slots"][name] for', "tests/test_design.py::test_a_proposal_that_brings_no_calls_gets_few_slots"),
    ("prefixes that outlive the table of the grammar", "zoo/grammatical.py", "if full or len(self._known)", "if len(self._known)", "tests/test_zoo_parts.py::test_a_full_table_of_the_grammar_is_emptied_and_samples_stay_the_same"),
    ("a density of noise without its volume", "guides/amortised.py", "return square / 2 - log_det.double()", "return square / 2", "tests/test_amortised.py::test_any_network_of_noise_gives_the_tilted_law"),
    ("a start of a network that is not weighed", "guides/amortised.py", "view.zeros(), (h, h)", "view.zeros(), (0 * h, h)", "tests/test_amortised.py::test_any_network_of_noise_gives_the_tilted_law"),
    ("a Langevin move that is accepted as pCN", "guides/psi_sampler.py", " + bent(new, z, slope) - bent(z, new, g)", "", "tests/test_psi_sampler.py::test_a_move_keeps_the_tilted_noise[True]"),
    ("tempers counted after the move", "guides/psi_sampler.py", "log_w = log_w + phi / self.levels", "log_w = log_w + (phi if k == self.levels else 0 * phi)", "tests/test_psi_sampler.py::test_the_start_is_the_tilted_noise_and_its_weights_integrate_it[False]"),
    ("a start whose tilt is counted twice", "guides/psi_sampler.py", "log_w, (phi, phi)", "log_w, (0 * phi, phi)", "tests/test_psi_sampler.py::test_with_a_deterministic_solver_particles_are_more_even_than_by_importance_sampling"),
    ("a start without its weights", "engine/run.py", "pop.weighed(seat.place, log_w, memo)", "pop.weighed(seat.place, 0 * log_w, memo)", "tests/test_psi_sampler.py::test_with_a_deterministic_solver_particles_are_more_even_than_by_importance_sampling"),
    ("a drift of the wrong sign", "guides/drift_lite.py", "return -torch.cholesky_solve(", "return torch.cholesky_solve(", "tests/test_drift_lite.py::test_the_least_variance_is_that_of_a_weighted_regression_with_a_ridge"),
    ("a drift that the weights do not know", "guides/drift_lite.py", "log_w = log_w + (before[3]", "log_w = log_w + 0 * (before[3]", "tests/test_drift_lite.py::test_the_law_is_that_of_fkc_and_the_weights_vary_less[quadratic-cosine]"),
    ("a drift of the states as they are scaled", "guides/drift_lite.py", "(a_s * ((s_t / a_t)", "(((s_t / a_t)", "tests/test_drift_lite.py::test_a_large_move_carries_y_by_theta_b_over_the_change_of_u"),
    ("a divergence of the prediction alone", "guides/drift_lite.py", "view.evals[need]) - dim for", "view.evals[need]) for", "tests/test_drift_lite.py::test_the_rate_of_every_field_has_the_mean_zero_under_the_path[score]"),
    ("an interpolant with noise on top of its own", "process/interpolant.py", "max(self.gamma(move.s) ** 2 - move.c**2, 0)", "self.gamma(move.s) ** 2", "tests/test_interpolant.py::test_samples_of_one_data_set_become_samples_of_the_other[2.0-clean]"),
    ("no mirror images", "process/reflected.py", "for image in (x, 2 * self.low - x)", "for image in (x, x)", "tests/test_reflected.py::test_folded_kernels_are_densities_of_their_samples[0.8]"),
    ("noise is read at the time that is told", "models/retimed.py", "self.base.read_out(x, times,", "self.base.read_out(x, told,", "tests/test_retimed.py::test_noise_is_read_at_the_time_of_the_solver_and_not_at_the_one_that_is_told"),
    ("a calibration of the wrong sign", "guides/score_calibration.py", "(x - torch.cat(told)).mean(0", "(torch.cat(told) - x).mean(0", "tests/test_corrections.py::test_a_bias_of_the_score_is_taken_away[flow]"),
    ("a folder that is not locked", "jobs/folder.py", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "tests/test_config.py::test_two_runs_of_one_process_do_not_share_a_folder_either"),
    ("a start with the level of the noise alone", "guides/gaussian_start.py", "(a_s * singular) ** 2 + s_s**2", "s_s**2", "tests/test_corrections.py::test_for_gaussian_data_the_start_is_where_the_flow_would_be[flow]"),
    ("times of least divergence by the loss at the end of a step", "solvers/align_your_steps.py", "m[:, None] * (g - g[:, None])", "m * (g - g[:, None])", "tests/test_solver_fit.py::test_of_one_gaussian_the_times_of_least_divergence_are_a_geometric_sequence[cosine]"),
    ("a state counts as final that still moves", "engine/parallel.py", "<= self.tolerance *", "<= 1 + self.tolerance *", "tests/test_parallel.py::test_without_tolerance_samples_are_those_of_the_run[DDPM]"),
    ("a stale prediction in parallel", "engine/parallel.py", "kept | self._looked(seen)", "self._looked(seen) | kept", "tests/test_parallel.py::test_without_tolerance_samples_are_those_of_the_run[DDPM]"),
    ("in parallel all rows at the first time", "models/base.py", "torch.tensor([t for t, rows in self.spans", "torch.tensor([self.spans[0][0] for t, rows in self.spans", "tests/test_parallel.py::test_rows_of_several_times_are_predicted_as_those_of_one[clean]"),
    (
        "a scale of Z-Image that is one too large",
        "integrations/diffusers/newer.py",
        "cond + (scale - 1) *",
        "cond + scale *",
        NEWER + "::test_a_family_equals_its_pipeline[z_image]",
    ),
    (
        "a density without its volume",
        "integrations/diffusers/process.py",
        " - c.log().expand_as(z).sum(1)",
        "",
        "tests/test_learned_variance.py::test_kernels_have_the_variance_of_the_paper_and_its_density[learned_range]",
    ),
    (
        "the variance of the null row",
        "models/evaluations.py",
        "spread.split(rows)[part.index(Cond())]",
        "spread.split(rows)[-1]",
        "tests/test_learned_variance.py::test_guidance_leaves_the_variance_at_the_condition",
    ),
    (
        "padding that is read as text",
        "integrations/diffusers/newer.py",
        "None if bool(mask.all()) else mask",
        "None",
        NEWER + "::test_evaluations_share_a_forward_pass[qwen]",
    ),
    (
        "the shift of Flux 2 without its steps",
        "integrations/diffusers/newer.py",
        " * (steps - 200)",
        "",
        NEWER + "::test_a_family_equals_its_pipeline[flux2]",
    ),
    ("weights do not telescope", "guides/fk_steering.py", "return now - total, (now, running)", "return now, (now, running)", UNBIASED + "[FK adaptive-vp-1d]"),
    ("reward times alpha", "guides/shared/twist.py", "value / guide.alpha", "value * guide.alpha", UNBIASED + "[FK adaptive-vp-1d]"),
    ("the sign of the reward", "guides/shared/twist.py", "value / guide.alpha", "-value / guide.alpha", UNBIASED + "[FK adaptive-vp-1d]"),
    ("no last factor", "guides/fk_steering.py", "return step.last or in_turn", "return not step.last and in_turn", UNBIASED + "[FK adaptive-uniform]"),
    (
        "the last weight by the look-ahead",
        "guides/shared/twist.py",
        "view.score(guide.reward) if view.step.last else ",
        "",
        FK + "::test_the_last_step_is_weighted_by_the_true_reward_and_not_by_the_look_ahead",
    ),
    (
        "weights dropped where nothing is resampled",
        "engine/resampling.py",
        "torch.where(needed, after, log_w)",
        "torch.where(needed, after, log_w.amax())",
        FK + "::test_adaptive_resampling_carries_the_weights_that_it_does_not_use",
    ),
    (
        "weights kept after resampling",
        "engine/resampling.py",
        "torch.where(needed, after, log_w)",
        "log_w.gather(1, index)",
        UNBIASED + "[FK adaptive-vp-1d]",
    ),
    (
        "Z forgotten at resampling",
        "engine/resampling.py",
        "torch.where(needed, after, log_w)",
        "torch.where(needed, torch.zeros_like(log_w), log_w)",
        UNBIASED + "[FK always-vp-1d]",
    ),
    ("log Z without 1/N", "engine/population.py", " - math.log(log_w.shape[-1])", "", UNBIASED + "[FK adaptive-vp-1d]"),
    (
        "stale memos",
        "engine/population.py",
        "{k: tree.take(v, index) for k, v in self._state().items()}",
        "{k: v if k == 'memos' and len(self) == len(index) else tree.take(v, index) for k, v in self._state().items()}",
        STATE,
    ),
    (
        "stale predictions",
        "engine/population.py",
        "{k: tree.take(v, index) for k, v in self._state().items()}",
        "{k: v if k == 'predictions' and not isinstance(index, slice) else tree.take(v, index)"
        " for k, v in self._state().items()}",
        STATE,
    ),
    ("survivors of the first group for all", "engine/population.py", "[:, None] * size).flatten()", "[:, None] * 0).flatten()", GROUPS),
    ("conditions of the first group for all", "models/evaluations.py", "encoded[group]", "encoded[group * 0]", GROUPS),
    ("q/p instead of p/q", "engine/run.py", "pop.log_w + q.correction(p, x)", "pop.log_w - q.correction(p, x)", UNBIASED),
    ("a steered proposal without its weights", "engine/run.py", "pop.log_w + q.correction(p, x)", "pop.log_w", UNBIASED),
    ("a history of the target made of proposals", "engine/run.py", "predictions = (_cut(view.prediction), *predictions[: self.order - 1])", "predictions = (_cut(view.prediction), *(proposals or predictions)[: self.order - 1])", "tests/test_steer.py::test_steering_is_unbiased_with_solvers_that_remember_or_draw_less"),
    ("the twist of a kept part kept for ever", "guides/keep.py", "return h - memo, h", "return h, h", KEEP + "::test_few_particles_are_unbiased"),
    ("the density at the wrong scale", "guides/keep.py", "p.mean, sigma / alpha, self.where", "p.mean, alpha, self.where", KEEP + "::test_the_rest_follows_the_conditional_law_and_z_is_the_density_of_what_is_kept"),
    ("a kept path without its noise", "guides/keep.py", "self.mean + self.move.c * noise", "self.mean", KEEP + "::test_the_rest_follows_the_conditional_law_and_z_is_the_density_of_what_is_kept"),
    ("known tokens counted once for every child", "guides/keep.py", ".sum(1) / population.branch", ".sum(1)", KEEP + "::test_children_of_one_particle_count_what_is_known_once"),
    ("known tokens that see those after them", "guides/keep.py", "(held & (rank < own[:, None]))[row]", "(held & (rank != own[:, None]))[row]", KEEP + "::test_the_probability_of_what_is_known_takes_a_row_of_the_network_for_each_token"),
    ("a move up that masks what is kept", "guides/keep.py", "return torch.where(self.held, self.x, self.inner.push(noise))", "return self.inner.push(noise)", KEEP + "::test_times_that_go_up_again_leave_the_conditional_law"),
    ("the probability of acceptance upside down", "guides/shared/constrained.py", "+ accepted - self.accepted", "- accepted + self.accepted", KEEP + "::test_constrained_tokens_follow_the_conditional_law_and_z_is_unbiased"),
    ("what is accepted without what was drawn", "guides/shared/constrained.py", "self.seen(x) * self.allowed)[0]", "self.given * self.allowed)[0]", KEEP + "::test_constrained_tokens_follow_the_conditional_law_and_z_is_unbiased"),
    ("no look ahead", "guides/shared/constrained.py", "w = f[:, i] * betas[i + 1][rows[:, None], after]", "w = f[:, i] * (betas[i + 1][rows[:, None], after] > 0)", KEEP + "::test_constrained_tokens_follow_the_conditional_law_and_z_is_unbiased"),
    ("an automaton that forgets suffixes", "guides/shared/language.py", "next(states[end] for end in ends if end in states)", "states.get(ends[0], 0)", KEEP + "::test_automata_accept_what_they_say"),
    ("choosers behind resamplers", "engine/seats.py", "key=lambda seat: _rank(seat, before)", "key=lambda seat: -_rank(seat, before)", "tests/test_together.py"),
    ("the start of a tilt forgotten", "guides/fkc.py", "return self._start(view) + self._beta(view.t, view) * r, (rate, r, pull)", "return self._start(view), (rate, r, pull)", "tests/test_together.py"),
    ("recurrences outside of their window", "guides/shared/training_free.py", "due = inside and move.s", "due = move.s", "tests/test_together.py"),
    ("corrections move the fraction", "solvers/base.py", "float(move.s != move.t)", "1.0", "tests/test_together.py"),
    ("steering changes the target", "engine/tilts.py", "target = target if seat.guide.steer else seat.guide.finish", "target = proposal if seat.guide.steer else seat.guide.finish", UNBIASED),
    ("the same noise at every step", "engine/noise.py", "[index % steps][rows]", "[0][rows]", FK + "::test_adaptive_resampling_carries_the_weights_that_it_does_not_use"),
    ("the same address for all children", "random.py", "(slot // n << 32)", "0 * n", HOOKS + "::test_children_of_one_parent_differ_and_share_all_that_is_the_parents"),
    ("draws of children by the number of particles", "engine/view.py", "random.address(self.slot, self.step.parents)", "self.slot", "tests/test_svdd.py::test_what_children_draw_for_themselves_does_not_depend_on_the_number_of_particles"),
    ("addresses by the number of particles", "random.py", "return slot % n + (slot // n << 32)", "return slot", f"{LAWS}::test_a_row_does_not_depend_on_the_number_of_rows"),
    ("the same noise for all children", "engine/run.py", "pop.slot + child % k * self.steps[index].n", "pop.slot", HOOKS + "::test_children_of_one_parent_differ_and_share_all_that_is_the_parents"),
    ("cfg off by one", "models/base.py", "return (scale - 1) * (cond", "return scale * (cond", CFG),
    ("cfg with cond and null swapped", "guides/cfg.py", "view.evals[Cond()], view.evals[Null()], every[0]", "view.evals[Null()], view.evals[Cond()], every[0]", CFG),
    ("noise of t for s", "solvers/ddim.py", "renewed(t, s, eta * s.sigma * max", "renewed(t, s, eta * t.sigma * max", FK),
    ("staying masked with the chance of leaving", "random.py", "return noise.words(index) <= (p", "return noise.words(index) > (p", FK + "::test_the_enumerated_law_of_four_tokens"),
    ("a step that loses what the next one would", "solvers/lsd.py", "self._lost[m - 1]", "self._lost[n - 1]", "tests/test_lsd.py"),
    ("a plan that forgets the steps after", "solvers/lsd.py", "least = (cost + least).min(1)", "least = cost.min(1)", "tests/test_lsd.py"),
    ("a time that falls by the masks that are left alone", "solvers/token_solver.py", "_top(gumbel, left) - _top(gumbel, before)", "_top(gumbel, left)", "tests/test_first_hitting.py::test_samples_have_the_law_of_the_ancestral_chain_with_many_steps"),
    ("a network that is told n/L", "engine/run.py", "at = step.t if pop.times is None else Mixed.of(pop.times)", "at = step.t", "tests/test_first_hitting.py::test_samples_have_the_law_of_the_ancestral_chain_with_many_steps"),
    ("times of the children before them", "engine/row_clock.py", "of = before.times, noise[..., self.mask], self._masked(before), self._masked(pop)", "of = before.times, noise[..., self.mask], self._masked(before), self._masked(before)", "tests/test_first_hitting.py::test_the_time_falls_from_move_to_move_as_that_of_the_next_position"),
    ("after a move up, the time before it", "engine/row_clock.py", "return self.started(pop, noise, move.s)", "return self.started(pop, noise, move.t)", "tests/test_first_hitting.py::test_times_begin_where_the_noise_ended"),
    ("copies with the time of another row", "models/base.py", "each[row], 1) for row in", "each[0], 1) for row in", "tests/test_first_hitting.py::test_a_weaker_network_is_asked_at_the_times_of_the_rows_too"),
    ("the time at which samples surprise most", "search/lsd.py", "best = [min(zip(", "best = [max(zip(", "tests/test_lsd.py::test_times_are_where_the_network_says_what_samples_at_drawn_times_hold"),
    ("a plan by the entropies at drawn times", "solvers/lsd.py", "return self.crossed or self.entropies", "return self.entropies", "tests/test_lsd.py::test_the_plan_with_times_is_that_of_their_losses_and_a_row_is_asked_by_its_masks"),
    ("tokens that lose and stay", "process/revealing.py", "return torch.where(free & ~first, self.mask, x)", "return x", "tests/test_rdm.py::test_samples_follow_the_loop"),
    ("states that are known under any condition", "models/evaluations.py", "zip(parts, before, strict=True)]).all(0)", "zip(parts, before, strict=True)]).any(0)", "tests/test_decided.py"),
    ("what was said of another state", "models/evaluations.py", "for part in last])[place] for", "for part in last])[place.flip(0)] for", "tests/test_decided.py"),
    ("masks revealed a move late", "engine/ahead.py", "found, move = (~below)", "found, move = (~below.roll(1, 0))", "tests/test_decided.py"),
    ("letters of the next row", "engine/ahead.py", "rows * length + places, gumbel)]", "rows * length + places, gumbel.roll(1, 0))]", "tests/test_decided.py"),
    ("letters by what was said of another row", "engine/ahead.py", "(count.cumsum(0) - count)[part[which]]", "(count.cumsum(0) - count)[part[which]].clamp(max=0)", "tests/test_decided.py"),
    ("tokens that hear of themselves", "process/revealing.py", "before = words.cumsum(1) - words", "before = words.cumsum(1)", "tests/test_joint.py"),
    ("tokens that are drawn without each other", "process/revealing.py", "h[rows] += self.order.word(", "h[rows] -= self.order.word(", "tests/test_joint.py"),
    ("an energy of the wrong sign", "values/energy.py", "softplus(ours) + softplus(-theirs)", "softplus(-ours) + softplus(theirs)", "tests/test_energy_fit.py::test_the_loss_is_least_at_the_log_of_the_ratio"),
    ("an energy at the state of another row", "guides/edlm.py", "view.x[row], at,", "view.x[row * 0], at,", "tests/test_edlm.py::test_samples_follow_the_enumerated_chain_of_two_candidates[of the state]"),
    ("candidates without their probability", "guides/edlm.py", "log_w = log_w - self._log_probs", "log_w = log_w + self._log_probs", "tests/test_edlm.py::test_samples_follow_the_enumerated_chain_of_two_candidates[residual]"),
    ("kept states of another text", "models/prefixes.py", "(name == names) & (token == text) & (before == there)", "name == names", "tests/test_prefixes.py::test_a_name_that_leads_to_another_text_leads_to_nothing"),
    ("a layer that is fitted to the time before", "search/joint.py", "paths.log_p[k, row], paths.log_p[k + r, row]", "paths.log_p[k, row], paths.log_p[k, row]", "tests/test_joint.py"),
    ("masks that stay under a sampler that draws them anew", "process/many_masks.py", "masks = masks if self.again", "masks = masks if not self.again", "tests/test_many_masks.py"),
    ("masks of a move without their probability", "process/many_masks.py", "torch.where(masked, each, 0.0)", "torch.where(masked, 0.0, 0.0)", "tests/test_many_masks.py"),
    ("the letters of another row", "process/independent.py", "noise[(*where, slice(", "noise[(where[0] * 0, where[1], slice(", "tests/test_masking.py"),
    ("moves by the chance of the other state", "process/independent.py", "torch.where(hidden, self.hide, 1 - self.hide).log()", "torch.where(hidden, 1 - self.hide, self.hide).log()", "tests/test_masking.py"),
    ("late numbers of another place", "random.py", "counter[index[1:]], self.key.gather(", "counter[index[1:]].flip(0), self.key.gather(", "tests/test_masking.py"),
    ("a revealed mask given that it stays", "edits/tokens.py", "left = log_m.expm1() *", "left = -log_m.exp() *", "tests/test_masking.py"),
    ("unmasked from the right", "process/tokens.py", "torch.arange(self.places - 1, -1, -1, dtype", "torch.arange(0, self.places, 1, dtype", ORDERED + "::test_a_move_down_unmasks_from_the_left_with_the_share_that_bayes_rule_says"),
    ("two tokens in a step", "process/tokens.py", "grid[nearest] = k / L", "pass", ORDERED + "::test_at_least_as_many_steps_as_positions_draw_exactly_from_the_model"),
    ("a position that sees the masks before it", "zoo/nets.py", "(tokens != self.vocab)[:, None] & (place <= place[:, None])", "(place <= place[:, None]).expand(len(tokens), -1, -1)", ORDERED + "::test_what_is_said_of_a_position_depends_on_the_tokens_before_it_and_on_no_mask"),
    ("an aromatic double bond that is in no ring", "zoo/syntax.py", "yield DOUBLE, DOUBLE, True", "yield DOUBLE, DOUBLE, False", FORBIDS),
    ("a nitrogen with three neighbours and a double bond", "zoo/syntax.py", "(INSIDE, DOUBLE, None, None)[atom.free]", "(DOUBLE, DOUBLE, None, None)[atom.free]", "tests/test_zoo_fragments.py::test_aromatic_rings_are_allowed_as_rdkit_allows_them"),
    ("a written bond that nothing can follow", "zoo/syntax.py", "and not self._answered(number)", "and False", "tests/test_zoo_fragments.py::test_an_untrained_network_writes_molecules_too[2]"),
    ("two double bonds at one aromatic atom", "zoo/syntax.py", "if order == 0 and is_a == is_b == ALONE and", "if order == 0 and", FORBIDS),
    ("a ring that is open at the end of its branch", "zoo/syntax.py", "not s.path[-2].branch or s.path[-1].rings:", "not s.path[-2].branch:", FORBIDS),
    ("a closed ring that leaves its bonds due", "zoo/syntax.py", "*((role, False) for role, _ in way[i + 1 : -1])", "*way[i + 1 : -1]", "tests/test_zoo_fragments.py::test_aromatic_rings_are_allowed_as_rdkit_allows_them"),
    ("a kept part whose last atom goes on", "zoo/readers.py", "allowed[len(first)] = torch.tensor(", "_ = torch.tensor(", "tests/test_zoo_parts.py::test_a_kept_part_is_in_every_molecule_and_log_z_is_its_probability[[*:1]c1ccccc1]"),
    ("rows that fit without a search though there may be no room", "zoo/grammar.py", "fine &= ~close", "fine &= True", "tests/test_zoo_fragments.py::test_rows_that_are_not_worth_a_search_fit_where_there_is_room_for_sure"),
    ("children of any size", "search/design/graph.py", "mol.GetNumHeavyAtoms() <= most", "True", "tests/test_design_parts.py::test_no_child_is_larger_than_asked_unless_its_larger_parent_is"),
    ("children of large parents that must be small", "search/design/graph.py", "most = max(atoms, *(", "most = min(atoms, *(", "tests/test_design_parts.py::test_no_child_is_larger_than_asked_unless_its_larger_parent_is"),
    ("an aromatic atom whose last bond has no place", "zoo/syntax.py", "if alone or short or", "if alone or", "tests/test_zoo_fragments.py::test_the_beginning_of_a_text_that_cannot_be_completed_is_forbidden"),
    ("a branch after which nothing can be bound", "zoo/syntax.py", "short or spent or", "short or", "tests/test_zoo_fragments.py::test_the_beginning_of_a_text_that_cannot_be_completed_is_forbidden"),
    ("completions longer than allowed for", "zoo/syntax.py", "SPARE = 4", "SPARE = 2", "tests/test_zoo_fragments.py::test_no_state_is_a_dead_end_and_no_completion_takes_more_symbols_than_are_allowed_for"),
    ("a fragment that joins nothing while others are open", "zoo/grammar.py", "most = rough + self._each * labels + torch.where(_own(state) | (labels == 0), 0, bound)", "most = rough + self._each * labels", "tests/test_zoo_fragments.py::test_a_fragment_that_can_join_nothing_more_must_have_joined_all"),
    ("uniform kernel with alpha_s for alpha_t/alpha_s", "process/tokens.py", "self._keep(x, kept_t / kept_s) * p", "self._keep(x, kept_s) * p", FK + "::test_the_enumerated_law_of_four_tokens"),
    ("the sorted largest of residual resampling", "engine/resampling.py", "random.uniform(key, (n,)))  # unsorted", "random.uniform(key, (n,)).sort(-1).values)  # sorted", UNBIASED + "[FK residual-vp-1d]"),
    ("a gradient tilt sees the plain estimate", "engine/tilts.py", "        view = view.with_prediction(target, shown)\n    proposal", "    proposal", HOOKS + "::test_gradient_tilts_see_the_estimate_that_other_tilts_have_made"),
    ("nested weights without 1/M", "guides/svdd.py", "mean, share = log_mean_exp(log_w),", "mean, share = log_w.logsumexp(-1),", UNBIASED + "[SVDD-vp-1d]"),
    ("nested weights of the chosen child", "guides/svdd.py", "0, drawn), mean)", "0, drawn))", UNBIASED + "[SVDD-vp-1d]"),
    ("children drawn against their weights", "guides/svdd.py", "((share - low).log() + random", "(-(share - low).log() + random", UNBIASED + "[SVDD-vp-1d]"),
    ("the shared part counted twice", "guides/svdd.py", "(share - low).log()", "share.log()", "tests/test_svdd.py"),
    ("the running max as the last factor", "guides/fk_steering.py", "now = twist(self, view, total)", "now = torch.fmax(running, twist(self, view, total))", UNBIASED + "[FK adaptive-masked]"),
    ("tempered twists that are not taken back", "guides/das.py", "level * now - counted,", "level * now,", UNBIASED + "[DAS adaptive-vp-1d]"),
    ("the last twist tempered", "guides/das.py", "if fraction >= 1:\n            return 1.0", "if fraction > 1:\n            return 1.0", UNBIASED + "[DAS adaptive-vp-1d]"),
    ("fkc without the cross terms", "guides/fkc.py", "rate = rate - c * f *", "rate = rate + c * f *", "tests/test_fkc.py"),
    ("fkc weights without the drift", "guides/fkc.py", "mean = mean + (1 - self.total) * (1 - v / (1 + a2))", "mean = mean + (1 - self.total) * (v / (1 + a2))", "tests/test_fkc.py"),
    ("fkc tilt with another noise level", "guides/fkc.py", "a2 / (1 + a2) * self._beta", "self._beta", "tests/test_fkc.py"),
    ("a reward gradient downhill", "guides/shared/twist.py", "return sigma**2 / alpha *", "return -(sigma**2) / alpha *", "tests/test_tds.py"),
    ("a reward gradient without 1/alpha_t", "guides/shared/twist.py", "return sigma**2 / alpha *", "return sigma**2 *", "tests/test_tds.py"),
    ("tds weights that do not telescope", "guides/tds.py", "return now - before, now", "return now, now", UNBIASED + "[TDS-vp-1d]"),
    ("the worst of the beam", "guides/beam_search.py", "descending=True", "descending=False", "tests/test_beam.py"),
    ("a beam within each parent", "guides/beam_search.py", "index = order % parents * k + order // parents", "index = order", "tests/test_beam.py"),
    ("the worst of N", "guides/best_of_n.py", ".unflatten(1, (-1, step.n)).max(1)", ".unflatten(1, (-1, step.n)).min(1)", "tests/test_best_of_n.py"),
    ("best-of-N across samples", "guides/best_of_n.py", "index = chain * step.n + torch.arange(step.n, device=chain.device)", "index = torch.arange(step.n, device=chain.device) * self.n + chain", "tests/test_best_of_n.py"),
    ("equal twists counted twice", "engine/seats.py", "twist is None or twist not in twists", "True", "tests/test_svdd.py::test_global_resampling_after_it_keeps_the_law_and_counts_the_reward_once[fk-svdd first]"),
    ("completions by the children's own noise", "values/rollout.py", "key = view.step.key[view.group] if self.shared else view.key", "key = view.key", "tests/test_values_looks.py::test_completions_with_shared_noise_are_equal_for_equal_states[True]"),
    ("the slope of the soft loss without its target", "values/fit.py", "slope, curve = alpha * (near - 1),", "slope, curve = alpha * near,", "tests/test_values_looks.py::test_the_soft_loss_of_a_constant_is_least_at_the_soft_mean[0.3]"),
    ("look-aheads of other rows", "values/nets.py", "torch.where(due[rows][..., None], own", "torch.where(due[: len(rows)][..., None], own", "tests/test_values_looks.py::test_states_are_seen_where_they_were_recorded"),
    ("the knots of a correction the other way round", "values/learned.py", "(place == right[:, None]) * share", "(place == right[:, None]) * (1 - share)", "tests/test_values_looks.py::test_a_correction_is_linear_between_its_knots"),
    ("a head that reads texts that have ended", "values/pooled.py", "open = open & ~decided[:, None]", "open = open | decided[:, None]", "tests/test_values_pooled.py::test_texts_that_have_ended_say_nothing_and_impossible_tokens_decide_nothing"),
    ("a head that says something at t = 0", "values/learned.py", "range(1, 1 + _POWERS)", "range(_POWERS)", "tests/test_values_pooled.py::test_a_head_is_a_cubic_in_time"),
    ("what can be explained by one completion", "values/explained.py", "(both - both.mean()).prod(0)", "(both - both.mean())[0].square()", "tests/test_values_looks.py::test_what_can_be_explained_is_the_variance_of_the_exact_mean"),
    ("second completions of other rows", "values/explained.py", "self.x[view.group * view.step.n + view.slot]", "self.x[: len(view.x)]", "tests/test_values_looks.py::test_what_is_explained_does_not_depend_on_the_batch[30]"),
    ("the soft value of a rollout without 1/k", "values/rollout.py", "soft = log_mean_exp(torch.where(known, scores / self.alpha, -torch.inf))", "soft = torch.where(known, scores / self.alpha, -torch.inf).logsumexp(-1)", "tests/test_potentials.py::test_one_step_of_tokens_draws_from_the_factorised_posterior[0.5-3-masked]"),
    ("codes taken a step late", "guides/ddcm.py", "0 if codes is None else codes.shape[1]", "0 if codes is None else codes.shape[1] - 1", "tests/test_ddcm.py"),
    ("the codeword farthest from the target", "guides/ddcm.py", ".mT).argmax(1)", ".mT).argmin(1)", "tests/test_ddcm.py"),
    ("perturbed rows of the first branch", "models/attention.py", "slice(self.rows.start * fold, self.rows.stop * fold)", "slice(0, (self.rows.stop - self.rows.start) * fold)", "tests/test_attention.py"),
    ("block 1 perturbs block 10", "models/attention.py", "name.startswith(p + \".\")", "name.startswith(p)", "tests/test_attention.py"),
    ("plain layers where they are recomputed", "models/hooked.py", "if out.grad_fn is not None:", "if False:", "tests/test_checkpointing.py"),
    ("all forwards recomputed as the perturbed", "models/hooked.py", "node._sequence_nr() in nodes", "True", "tests/test_checkpointing.py"),
    ("rewards shown what particles move with", "engine/tilts.py", "if shown is not None or seen is not moved:", "if False:", "tests/test_cfg_family.py"),
    ("the log-densities of AND the wrong way round", "guides/intersection.py", "** 2 * gap", "** 2 * -gap", MORE + "::test_both_experts_find_samples_of_their_intersection_equally_likely"),
    ("the ratio of feedback guidance upside down", "guides/feedback_guidance.py", "gain = (square[0] - square[1])", "gain = (square[1] - square[0])", MORE + "::test_feedback_guidance_by_hand"),
    ("a row that has stopped starts again", "guides/adaptive_guidance.py", "if memo is None else memo\n", "\n", MORE + "::test_adaptive_guidance_stops_row_by_row_and_pays_for_no_null_row_afterwards"),
    ("a pyramid that halves before it blurs", "guides/frequency_decoupled.py", "_resized(_blurred(every), half)", "_blurred(_resized(every, half))", MORE + "::test_frequency_decoupled_guidance_is_cfg_of_every_level_of_the_pyramid"),
    ("keys of the other row in a negative attention", "guides/nag.py", "self.heard.calls[call.site](query=call.query)", "self.heard.calls[call.site]()", "tests/test_more_perturbing.py::test_nag_extrapolates_cross_attention_within_its_bound"),
    ("noise of the state before it was blurred", "guides/sag.py", "alpha * (changed - clean)", "(changed - clean)", "tests/test_more_perturbing.py::test_sag_pushes_away_from_what_blurring_the_attended_regions_leaves"),
    ("perturbed guidance towards the perturbed", "guides/shared/perturbing.py", "(view.evals[Cond()] - other)", "(other - view.evals[Cond()])", "tests/test_pag.py"),
    ("autoguidance off by one", "guides/autoguidance.py", "(at(self.scale, view.t) - 1) *", "at(self.scale, view.t) *", "tests/test_autoguidance.py"),
    ("history with its weights swapped", "guides/higs.py", "self.alpha * d + (1 - self.alpha) * past", "(1 - self.alpha) * d + self.alpha * past", "tests/test_higs.py"),
    ("a teacher at the student's time", "guides/distillation.py", "min(move.s, view.t) if", "view.t if", "tests/test_distillation.py"),
    ("away from the rare", "guides/minority_guidance.py", "return log_p[:, self.bin]", "return -log_p[:, self.bin]", "tests/test_minority.py"),
    ("deviation for variance", "guides/self_guided_minority.py", "* move.c**2 / move.b[0]", "* move.c / move.b[0]", "tests/test_minority.py"),
    ("boosted twice", "guides/boost_and_skip.py", "return x * self.gamma", "return x * self.gamma**2", "tests/test_minority.py"),
    ("the shift of a recurrence", "guides/shared/training_free.py", "/ row.down.b[0]", "/ row.b[0]", "tests/test_tfg.py"),
    ("tfg in the coordinates of x", "guides/shared/training_free.py", "rho * level * square / alpha", "rho * level / alpha", "tests/test_tfg.py"),
    ("a classifier without 1/alpha_t", "guides/shared/labelled.py", "return scale * sigma**2 / alpha *", "return scale * sigma**2 *", "tests/test_classifier.py"),
    ("doubt for certainty", "guides/gfcg.py", "-torch.expm1(log_p.gather(1, own).clamp(max=0.0))", "log_p.gather(1, own).exp()", "tests/test_classifier.py"),
    ("tokens without gamma", "guides/dcbg.py", "scale * (log_p - log_p.amax", "(log_p - log_p.amax", "tests/test_discrete_guidance.py"),
    ("the gradient of tokens downhill", "guides/tag.py", "return rise[..., : view.model.process.V] - rise.gather(-1, view.x[..., None])", "return rise.gather(-1, view.x[..., None]) - rise[..., : view.model.process.V]", "tests/test_discrete_guidance.py"),
    ("rows with a mask that are called whole", "process/tokens.py", "return ~open.any(-1)", "return ~open.all(-1)", "tests/test_decided.py"),
    ("the shift of an edit the wrong way", "edits/chain.py", "run.steps[index + 1].t - shift", "run.steps[index + 1].t + shift", "tests/test_edits.py::test_a_shift_gives_the_noise_of_few_steps_the_size_that_the_model_expects"),
    ("a level that is what is kept", "process/tokens.py", "(used * (1 - level)).floor()", "(used * level).floor()", "tests/test_zoo_parts.py"),
    ("null predictions with equal weights", "guides/compose.py", "(null, rest * a)", "(null, a)", "tests/test_compose.py"),
    ("responsibilities against the densities", "guides/mixture.py", "log_rho = log_rho + torch", "log_rho = log_rho - torch", "tests/test_compose.py"),
    ("views that are not turned back", "guides/views.py", "tilt = tilt + a * pair[1](d)", "tilt = tilt + a * d", "tests/test_views.py"),
    ("a switch one step late", "guides/switch.py", "p <= view.step.fraction", "p < view.step.fraction", "tests/test_switch.py"),
    ("the layout's share", "guides/magicmix.py", "mix * prediction + (1 - mix) * own", "(1 - mix) * prediction + mix * own", "tests/test_switch.py"),
    ("a variance over the whole run", "guides/hallucination.py", "_mean(memo[1]) / min(self.window, total)", "_mean(memo[1]) / total", "tests/test_hallucination.py"),
    ("a sigmoid of base e", "../rewards/transforms.py", "(10 * _LN10 * self.k", "(10 * self.k", "tests/test_rewards_core.py"),
    ("unknown endpoints count", "../rewards/combine.py", "[:, None] * ~scores.isnan()", "[:, None] * torch.ones_like(scores)", "tests/test_rewards_core.py"),
    ("domination everywhere", "../rewards/combine.py", "(scores[:, None] >= scores[None]).all(-1)", "(scores[:, None] > scores[None]).all(-1)", "tests/test_rewards_core.py"),
    ("scores that are lost at a kill", "../rewards/cached.py", "self.connection.commit() if kind is None", "self.connection.rollback() if kind is None", "tests/test_rewards_core.py"),
    ("trees that are read the wrong way", "../rewards/molecules/oracles.py", 'm["right"][node], node + 1)', 'node + 1, m["right"][node])', "tests/test_pmo.py::test_the_activity_models_say_what_the_original_ones_say"),
    ("the probability of the other class", "../rewards/molecules/oracles.py", '1 - 1 / (1 + np.exp(m["sigmoid"]', '1 / (1 + np.exp(m["sigmoid"]', "tests/test_pmo.py::test_the_activity_models_say_what_the_original_ones_say"),
    ("parts that go on anywhere", "../rewards/molecules/descriptors.py", "how.makeDummiesQueries = how.adjustDegree = True", "how.makeDummiesQueries = True", "tests/test_designing.py::test_a_part_counts_only_where_it_goes_on_at_its_open_bonds"),
    ("scores of the wrong half", "../rewards/http.py", "self._scored(part[:half], lost) + self._scored(part[half:], lost)", "self._scored(part[half:], lost) + self._scored(part[:half], lost)", "tests/test_rewards_http.py::test_a_sample_that_breaks_the_server_costs_itself_alone"),
    ("circles that touch", "../rewards/molecules/metrics.py", "default=0.0) <= 1 - distance", "default=0.0) <= distance", "tests/test_rewards_molecules.py::test_circles_are_molecules_of_which_no_two_are_near"),
    ("leads as they are read beside a kept part", "engine/checks.py", "_there(guide.beside(found, model), model.device)", "_there(guide, model.device)", "tests/test_zoo_parts.py::test_a_run_from_leads_keeps_the_part_and_what_the_level_leaves"),
    ("rows outside the grammar before a kept part", "zoo/readers.py", "bool(self._grammar.alive(self._grammar.read(row[None])))", "True", "tests/test_zoo_parts.py::test_samples_are_written_so_that_the_kept_part_comes_first"),
    ("parents that do not hold the part", "search/design/study.py", "x = x[fine]", "x = x", "tests/test_zoo_parts.py::test_samples_are_written_so_that_the_kept_part_comes_first"),
    ("the most changed molecule as the nearest", "zoo/nearest.py", "for count in range(1, TOGETHER + 1)", "for count in range(TOGETHER, 0, -1)", "tests/test_reading.py::test_the_nearest_molecule_that_the_model_writes_is_named"),
    ("filters that ask for two places", "../rewards/molecules/descriptors.py", 'row["smarts"], 1)', 'row["smarts"], 2)', "tests/test_rewards_molecules.py::test_medicinal_chemistry_filters_are_those_of_moses"),
    ("kept letters that proposals may change", "cli/designing.py", "checks += [holds] if", "checks += [] if", "tests/test_designing.py::test_kept_letters_are_in_everything_that_is_asked"),
    ("files in another order than the table", "report/export.py", "range(len(smiles)) if order is None else order", "range(len(smiles))", "tests/test_export.py::test_an_sdf_is_known_by_its_content_and_files_may_be_compressed"),
    ("the reward of the first group for all", "engine/scoring.py", "(group == g).nonzero()[:, 0], reward.rewards[g])", "(group == g).nonzero()[:, 0], reward.rewards[0])", "tests/test_rewards_core.py::test_each_group_has_its_own_reward"),
    ("chunks in the order in which they end", "../rewards/pooled.py", "left = [list(range(i, min(i + size, len(samples)))) for i in range(0, len(samples), size)][::-1]", "left = [list(range(0, min(size, len(samples) - i))) for i in range(0, len(samples), size)][::-1]", "tests/test_pooled.py"),
    ("the other strand without its complement", "../rewards/dna/motifs.py", "w.flip(0, 1)", "w.flip(1)", "tests/test_rewards_dna.py::test_jaspar_motifs_score_as_plain_log_odds[MA0035.4]"),
    ("kB of 1024 bytes", "../rewards/images/basic.py", "self._bytes(image) / 1000", "self._bytes(image) / 1024", "tests/test_rewards_images.py"),
    ("synthesis rewarded for being hard", "../rewards/molecules/descriptors.py", "LogP().of(mol) - SA().of(mol)", "LogP().of(mol) + SA().of(mol)", "tests/test_rewards_molecules.py"),
    ("the area under best molecules by rectangles", "../rewards/molecules/metrics.py", "(left + right) / 2", "right", "tests/test_rewards_molecules.py"),
    ("a velocity in pure noise taken for the clean mean", "models/gaussian.py", "if a == 0 and b == 1:", "if a == 0:", "tests/test_models.py"),
    ("labels of the first group for all", "guides/shared/labelled.py", "numbers(label, group.device).to(group)[group]", "numbers(label, group.device).to(group)[group * 0]", "tests/test_classifier.py"),
    ("a radius that shrinks where it improved", "search/zero_order.py", "torch.where(better, self.angle, self.angle * self.shrink)", "torch.where(better, self.angle * self.shrink, self.angle)", "tests/test_search.py::test_the_radius_shrinks_where_no_neighbour_is_better_and_only_there"),
    ("a path of sigma that is not whitened", "search/cma.py", "self.effective, step / self.c.sqrt())", "self.effective, step)", "tests/test_search.py::test_cma_follows_the_paper_round_after_round"),
    ("lineages of what particles move with", "report/recorder.py", "pop.seen", "pop.predictions[0]", "tests/test_cfg_family.py::test_recorders_and_path_searches_take_the_guided_mean_of_cfgpp_as_the_estimate"),
    ("searches that score in training mode", "search/verify.py", "with lent(networks_in(*self.rewards)):", "with lent([]):", "tests/test_reward_modes.py"),
    ("slope and line in each other's place", "solvers/belm.py", "v - r_s * gain * u", "v + r_s * gain * u", "tests/test_solvers.py::test_belm_keeps_to_the_straight_path_between_data_and_noise"),
    ("the ratio of steps and not its square", "solvers/belm.py", "min(1.0, h / k) ** 2)", "min(1.0, h / k))", "tests/test_solvers.py::test_belm_is_the_published_formula_where_steps_shrink_and_bdia_where_they_grow"),
    ("steps that grow amplify", "solvers/belm.py", "min(1.0, h / k) ** 2", "(h / k) ** 2", "tests/test_solvers.py::test_belm_is_the_published_formula_where_steps_shrink_and_bdia_where_they_grow"),
    ("a state before that is not scaled", "solvers/bdia.py", "self.gamma * r_b / r_s", "self.gamma * r_s / r_b", "tests/test_solvers.py::test_bdia_is_ddim_down_and_what_ddim_up_misses_of_the_state_before"),
    ("the spread of the noise for that of the data", "solvers/analytic_dpm.py", "max(1 - float(self.statistics.at(v)[0]), 0.0)", "max(float(self.statistics.at(v)[0]), 0.0)", "tests/test_solver_statistics.py::test_with_the_analytic_variance_every_state_of_a_gaussian_has_its_distribution"),
    ("the weight of a prediction and not its square", "solvers/analytic_dpm.py", "move.b[0] ** 2 *", "move.b[0] *", "tests/test_solver_statistics.py::test_with_the_analytic_variance_every_state_of_a_gaussian_has_its_distribution"),
    ("a line that was not gone", "solvers/belm.py", "u * (1 + gain / h) for u in f), -gain / h)", "u for u in f), 0.0)", "tests/test_solvers.py::test_belm_is_the_published_formula_where_steps_shrink_and_bdia_where_they_grow"),
    ("the second noise of another row", "engine/noise.py", "self.given[1][pop.group * self.alive[0] + pop.slot]", "self.given[1][pop.slot]", "tests/test_edits.py::test_a_reversible_sampler_brings_any_sample_back_with_any_network_and_any_number_of_steps"),
    ("a run backwards that takes the later prediction", "edits/reversible.py", "walk.prediction(x, index)", "walk.prediction(after, index)", "tests/test_edits.py::test_a_reversible_sampler_brings_any_sample_back_with_any_network_and_any_number_of_steps"),
    ("a divergence of the wrong sign", "models/likelihood.py", "v - alpha * torch.autograd.grad", "v + alpha * torch.autograd.grad", "tests/test_likelihood.py::test_the_density_of_the_flow_is_that_of_the_mixture"),
    ("an unscaled divergence", "models/likelihood.py", "v - alpha * torch.autograd.grad", "v - torch.autograd.grad", "tests/test_likelihood.py::test_the_density_of_the_flow_is_that_of_the_mixture"),
    ("a bound without the number of positions", "models/likelihood.py", "L / k * torch.where", "1 / k * torch.where", "tests/test_likelihood.py::test_the_bound_of_masked_tokens_is_met_by_a_network_whose_conditionals_are_those_of_one_law"),
    ("all orders begin alike", "models/likelihood.py", "hidden = random.uniform(keys, (L,)).argsort(-1).argsort(-1) < k", "hidden = torch.arange(L).expand_as(x) < k", "tests/test_likelihood.py::test_the_bound_of_masked_tokens_is_met_by_a_network_whose_conditionals_are_those_of_one_law"),
    ("tokens that see themselves", "models/likelihood.py", "seen[:, i:] = process.V", "seen[:, i + 1 :] = process.V", "tests/test_likelihood.py::test_of_ordered_tokens_it_is_the_probability"),
    ("a divergence of chains the other way round", "models/likelihood.py", "q.exp() * (q - p)", "q.exp() * (p - q)", "tests/test_likelihood.py::test_the_bound_of_uniform_tokens_is_that_of_its_chain"),
    ("rounding taken for a direction", "guides/self_guided_minority.py", " & (view.model.process.scales(view.t)[0] >= 1e-3)", "", "tests/test_minority.py"),
    ("noise with the sign of the data", "solvers/multistep.py", "return 1 / t.sigma, -t.alpha / t.sigma", "return 1 / t.sigma, t.alpha / t.sigma", TABLES + "::test_exact_data_in_the_predictions_keeps_the_marginal_law"),
    ("a start that forgets the state in what is remembered", "solvers/base.py", "first._replace(a=first.a + a, b=(b[0] + d,), keep=still)", "first._replace(b=(b[0] + d,), keep=still)", TABLES + "::test_a_table_that_starts_later_starts_as_if_it_had_stood_still"),
    ("a predictor that is not taken back", "solvers/multistep.py", "_add(b, 1, -move.a * np.array(predict(past[0], nodes)))", "_add(b, 1, move.a * np.array(predict(past[0], nodes)))", TABLES + "::test_exact_data_in_the_predictions_keeps_the_marginal_law"),
    ("noise of a step without its old part", "solvers/er_sde.py", "rest = w_s**2 - (w_t * r) ** 2", "rest = w_s**2 - (w_s * r) ** 2", TABLES + "::test_er_sde_of_second_order_is_its_published_formula"),
    ("momentum with its shares swapped", "solvers/ghvb.py", "v = (*line[:2], 1 - self.beta, *line[3:])", "v = (*line[:2], self.beta, *line[3:])", TABLES + "::test_solvers_that_are_the_same_method_go_the_same_way"),
    ("a later start that lacks the early noise", "solvers/base.py", "first.c**2 + first.a**2 * first.early", "first.c**2", TABLES + "::test_noise_that_is_added_early_is_made_up_for_where_a_table_starts_later"),
    ("half of the noise that was added early counted as none", "solvers/accelerated.py", "(t.sigma**2 + extra)", "t.sigma**2", TABLES + "::test_the_accelerated_ddpm_is_the_published_one_with_the_noise_that_exact_data_need"),
    ("a value above that is taken for the one here", "solvers/accelerated.py", "b = (-s.alpha * c_u / w_u, s.alpha * (1 - (w_t + c_t) / w_u))", "b = (-s.alpha * c_t / w_u, s.alpha * (1 - (w_t + c_u) / w_u))", TABLES + "::test_the_accelerated_ddim_is_the_published_one_up_to_the_third_order"),
    ("moved predictions that later steps forget", "solvers/dc_solver.py", "remembered((0.0, *line.tolist())", "remembered((0.0, 1.0)", TABLES + "::test_dc_solver_is_unipc_that_remembers_moved_predictions"),
    ("a remainder that grows backwards", "solvers/dpm_v3.py", "math.exp(self._area(t, p)[1]) for c, p", "math.exp(self._area(p, t)[1]) for c, p", TABLES + "::test_solvers_that_are_the_same_method_go_the_same_way"),
    ("a noise in the place of the one before", "solvers/usf.py", "(0.0, 0.0, 0.0, 0.0, 1.0))", "(0.0, 0.0, 0.0, 1.0))", "tests/test_solver_statistics.py::test_usf_changes_between_clean_means_and_noises_as_it_is_told"),
    ("a Jacobian of half of the probe", "solvers/dpm_v3.py", "/ v.square().sum()", "/ (2 * v.square().sum())", "tests/test_solver_statistics.py::test_the_statistics_of_a_gaussian_are_those_of_the_formula"),
    ("ratios that lead away", "solvers/dc_solver.py", "best = min(_FIRST, key", "best = max(_FIRST, key", "tests/test_solver_statistics.py::test_fitted_ratios_make_unipc_more_accurate_on_other_noises_than_those_of_the_fit"),
    ("noise moved back to the step before", "solvers/dual_fast.py", "more = c *", "more = -c *", TABLES + "::test_dualfast_replaces_the_noise_in_the_first_order_term_of_dpm_solver"),
    ("a last step of the reference in six parts", "solvers/fitting.py", "LAST = 12", "LAST = 6", "tests/test_solver_fit.py::test_the_reference_of_many_steps_is_the_flow_down_to_data"),
    ("extrapolated data and kept noise", "solvers/ucgm.py", "-self.kappa * left)", "0.0 * left)", TABLES + "::test_on_a_flow_ucgm_is_its_published_step"),
    ("the error of a fit with half of a term", "solvers/fit.py", "- 2 * (c * rhs).sum(1)", "- (c * rhs).sum(1)", "tests/test_solver_fit.py::test_the_error_that_is_said_is_that_of_the_run"),
    ("noise made longer", "guides/epsilon_scaling.py", "(1 - 1 / at(self.scale, view.t))", "(1 - at(self.scale, view.t))", "tests/test_epsilon_scaling.py"),
    ("the farthest candidate", "solvers/fit.py", "option.error < found[j].error", "option.error > found[j].error", "tests/test_solver_fit.py::test_the_path_is_that_of_the_recursion_written_out"),
    ("states found by a name alone", "models/prefixes.py", " & (before == there)", "", "tests/test_prefixes.py"),
    ("states of another row", "models/prefixes.py", "return self.states[path]", "return self.states[path.flip(0)]", "tests/test_prefixes.py"),
    ("equal texts under two conditions", "models/prefixes.py", "known, device=device))[place]", "known, device=device))[place * 0]", "tests/test_prefixes.py"),
    ("states of other weights", "models/prefixes.py", "if mark != self._mark or", "if", "tests/test_prefixes.py"),
    ("places counted from the kept ones", "zoo/nets.py", "self.place[first : first + tokens.shape[1] + 1]", "self.place[: tokens.shape[1] + 1]", "tests/test_prefixes.py"),
    ("ends that are masked again", "process/lengths.py", "return x == self.end", "return x != x", "tests/test_lengths.py"),
    ("a length too long by one", "process/lengths.py", "length = 1 + (", "length = 2 + (", "tests/test_lengths.py"),
    ("lengths that do not count for a kept part", "guides/keep.py", "total + chances", "total", "tests/test_lengths.py"),
    ("kept tokens in rows of masks alone", "guides/keep.py", "open = torch.where(view.x == process.end, view.x, open)", "open = torch.full_like(view.x, open)", "tests/test_lengths.py"),
    ("ends within texts", "models/tokens.py", "== self.end, -torch.inf, logits)", "== self.end, logits, logits)", "tests/test_lengths.py"),
    ("scores of uniform noise taken for posteriors", "integrations/sedd.py", "s - other * s.sum(-1, keepdim=True)", "s - 0 * s.sum(-1, keepdim=True)", "tests/test_sedd.py"),
    ("scores without the likelihood", "integrations/sedd.py", "return (a * kept).log()", "return a.log()", "tests/test_sedd.py"),
    ("a corrector that does not return", "solvers/flow_matching.py", "+ self.corrector * back * own", "", "tests/test_flow_matching.py"),
    ("a corrector that does not make up for it", "solvers/flow_matching.py", "(1 + self.corrector) * math.log(t / s)", "math.log(t / s)", "tests/test_flow_matching.py"),
    ("a path run backwards", "solvers/flow_matching.py", "1 - self.share(1 - t)", "self.share(t)", "tests/test_flow_matching.py"),
    ("births that forget who is there", "process/blackout.py", "below = torch.arange(self.V, device=x.device) < x[..., None]", "below = torch.arange(self.V, device=x.device) < 0 * x[..., None]", "tests/test_blackout.py"),
    ("a share of births of the wrong time", "process/blackout.py", "(alive_s - alive_t) / move.t", "(alive_s - alive_t) / alive_s", "tests/test_blackout.py"),
    ("deaths since the beginning", "process/blackout.py", "binomial(self.V, alive_s / alive_t, x.device)", "binomial(self.V, alive_s, x.device)", "tests/test_blackout.py"),
    ("scores of places and not of items", "process/riffle.py", "self.scores.gather(1, self.x.argsort(1)).gather(1, x)", "self.scores.gather(1, x)", "tests/test_riffle.py"),
    ("the smallest score first", "process/riffle.py", "(self.scores + noise).argsort(dim=1, descending=True)", "(self.scores + noise).argsort(dim=1)", "tests/test_riffle.py"),
    ("falling sequences", "process/riffle.py", "place.diff(dim=1) < 0", "place.diff(dim=1) > 0", "tests/test_riffle.py"),
    ("shuffles added and not multiplied", "process/riffle.py", "2 ** round(", "2 * round(", "tests/test_riffle.py"),
    ("informed moves against their proposals", "search/informed.py", "back.log_prob(x) - there.log_prob(here)", "there.log_prob(here) - back.log_prob(x)", "tests/test_informed.py"),
    ("a way back by the gradient from before", "search/informed.py", "self.moves.kernel(y, log_p, here, tree.take(slopes, mine),", "self.moves.kernel(y, log_p, here, slope,", "tests/test_informed.py"),
    ("gradients of what was refused", "search/informed.py", "torch.where(accepted[:, None, None], slopes, slope)", "slopes", "tests/test_informed.py::test_the_gradient_that_is_kept_is_the_one_at_the_sample"),
    ("letters that the model sees before it weighs them", "search/informed.py", "(changed & (rank >= j))[rows]", "(changed & (rank > j))[rows]", "tests/test_informed.py"),
    ("rewards in units of 1/alpha", "search/informed.py", "_rise(scores_of(state), rewards) / self.alpha", "_rise(scores_of(state), rewards) * self.alpha", "tests/test_informed.py"),
    ("letters counted from the one that was there, the wrong way", "search/moves.py", "(torch.arange(V, device=y.device) + origin[..., None])", "(torch.arange(V, device=y.device) - origin[..., None])", "tests/test_informed.py"),
    ("an expansion that forgets its own mean", "guides/taylor_smc.py", "(log_p + g).logsumexp(-1) - (g * e).sum(-1)", "(log_p + g).logsumexp(-1)", "tests/test_taylor_smc.py"),
    ("a twist that does not telescope", "guides/taylor_smc.py", "return now - before, now", "return now, now", "tests/test_taylor_smc.py"),
    ("the smallest 1/alpha within the limit", "engine/strength.py", "low, high = (middle, high) if fine(middle) else (low, middle)", "low, high = (low, middle) if fine(middle) else (middle, high)", "tests/test_strength.py"),
    ("a divergence without log Z", "engine/strength.py", "@ self.r) - self.log_z - float(moved.logsumexp(0))", "@ self.r) - float(moved.logsumexp(0))", "tests/test_strength.py"),
    ("a tempered pilot run weighted from the start", "engine/strength.py", "(beta - self.begun) * self.r", "beta * self.r", "tests/test_strength.py"),
    ("copies that count once", "engine/unique.py", "torch.zeros_like(log_w).index_add(0, of, share).log()", "torch.zeros_like(log_w).index_copy(0, of, share).log()", "tests/test_unique.py"),
    ("light samples with the weight that they had", "engine/unique.py", "torch.maximum(sorted_w.gather(1, drawn).log(), log_c)", "sorted_w.gather(1, drawn).log()", "tests/test_unique.py"),
    ("what remains counted among what is drawn", "engine/unique.py", "torch.arange(n, 0, -1", "torch.full((n,), n", "tests/test_unique.py"),
    ("a block scored at its start", "guides/code.py", "return step.last or step.index % self.block == 0", "return step.last or step.index % self.block == 1", "tests/test_blocks.py"),
    ("children of a block of other parents", "guides/code.py", "branch=len(population) // (population.groups * step.n)", "branch=step.n", "tests/test_blocks.py"),
    ("a funnel that widens", "guides/funnel.py", "(last - first) * way", "(first - last) * way", "tests/test_blocks.py"),
    ("annealed masses and the mean weight", "engine/resampling.py", "(log_w - masses - math.log(size))", "(log_w * 0 + mean)", "tests/test_blocks.py"),
    ("hot where it is to be cold", "guides/entropic_annealing.py", "heat = (1 - step.fraction)", "heat = step.fraction", "tests/test_blocks.py"),
    ("a kept path that is resampled away", "search/particle_gibbs.py", "torch.cat([torch.zeros_like(drawn[..., :1]), drawn[..., 1:]], -1)", "drawn", "tests/test_particle_gibbs.py"),
    ("a path of noise from the places after each move", "search/particle_gibbs.py", "torch.cat([lineage[:1], lineage[:-1]])", "lineage", "tests/test_particle_gibbs.py"),
    ("a value that sums over children", "search/tree.py", "math.log(np.exp(values - most).mean())", "math.log(np.exp(values - most).sum())", "tests/test_tree.py"),
    ("leaves weighted by rewards alone", "search/tree.py", "return leaf.value - sum(", "return leaf.value - 0 * sum(", "tests/test_tree.py"),
    ("walks away from high values", "search/tree.py", "(values + rng.gumbel(", "(rng.gumbel(", "tests/test_tree.py"),
    ("quotas that do not roll over", "search/rbf.py", "self.left = most - tried if", "self.left = 0 * tried if", "tests/test_rbf.py::test_what_is_left_goes_to_the_moves_that_need_it"),
    ("candidates that need only be as good", "search/rbf.py", "(score <= goal) & (tried < most)", "(score < goal) & (tried < most)", "tests/test_rbf.py::test_without_preferences_samples_are_those_of_the_model"),
    ("exchanges uphill", "search/replica_exchange.py", "(self.beta[low] - self.beta[low + 1])", "(self.beta[low + 1] - self.beta[low])", "tests/test_replica_exchange.py"),
    ("moves at the temperature of the model", "search/replica_exchange.py", "self.beta[:, None] * _rise", "0 * self.beta[:, None] * _rise", "tests/test_replica_exchange.py"),
    ("a bank at the noise level of the data", "values/bank.py", "alpha * own.double()", "own.double()", "tests/test_bank_value.py"),
    ("a bank whose weights do not divide", "values/bank.py", ".logsumexp(1) - log_k.logsumexp(1)", ".logsumexp(1) - math.log(log_k.shape[1])", "tests/test_bank_value.py"),
    ("a bank of all tokens that are kept", "values/bank.py", "kept, other = 1 - view.t + view.t / process.V,", "kept, other = 1 - view.t,", "tests/test_bank_value.py"),
    ("relatives of the best", "search/design/memory.py", ".sum(1) >= apart).all())", ".sum(1) >= apart).any())", "tests/test_design.py::test_distinct_designs_differ_as_much_as_asked_and_the_loop_looks_for_them"),
    ("a ridge of noise times variance", "measurements/measurement.py", "max(self.noise**2 / variance, 1e-6)", "max(self.noise**2 * variance, 1e-6)", MEASURED + "::test_pigdm_adds_the_score_of_a_gaussian_with_unit_covariance"),
    ("a flow map that starts at the estimate", "values/flow_map.py", "x, times = view.x, torch", "x, times = view.clean, torch", "tests/test_lookaheads.py::test_a_flow_map_is_the_reward_at_the_end_of_the_flow[student-3]"),
    ("children completed by the parent of others", "engine/run.py", "before = pop.predictions[0] if index", "before = pop.predictions[0].roll(1, 0) if index", "tests/test_lookaheads.py::test_each_child_is_completed_by_its_own_parent"),
    ("children made anew by their parent", "values/resubstitution.py", "process.clean(view.before, view.x)", "view.before.argmax(-1)", "tests/test_lookaheads.py::test_a_child_is_scored_with_what_was_said_of_its_parent"),
    ("the measurement of the first group for all", "measurements/measurement.py", "else y[group]", "else y[group * 0]", MEASURED + "::test_measurements_of_conditions_are_run_side_by_side"),
    ("the likelihood's gradient uphill", "values/likelihood.py", "slope = -((e - e.detach())", "slope = ((e - e.detach())", "tests/test_measurement.py::test_the_look_ahead_is_the_log_density_of_a_gaussian_with_its_gradient"),
    ("a blur that is its own adjoint", "measurements/operators.py", "self.response(y).conj()", "self.response(y)", "tests/test_measurement.py::test_adjoint_pseudo_inverse_spectrum_and_ridge_are_those_of_the_matrix"),
    ("an evidence without its constant", "measurements/noise.py", " - math.log(self.std * math.sqrt(2 * math.pi))", "", "tests/test_measurement.py::test_gaussian_noise_has_the_density_of_torch"),
    ("noise of a move and of y added up", "guides/ddnm.py", "(1 - brought.square())", "(1 - 0 * brought)", MEASURED + "::test_ddnm_with_noise_gives_every_component_the_noise_of_the_move"),
    ("measured components in units of x_0", "guides/ddrm.py", "a_s * self.eta_b, along", "self.eta_b, along", MEASURED + "::test_ddrm_makes_the_three_moves_of_the_paper"),
    ("Langevin steps with half the heat", "guides/daps.py", "(2 * h) ** 0.5", "h**0.5", MEASURED + "::test_daps_draws_by_langevin_dynamics_around_the_end_of_the_ode"),
    ("a proximal step at alpha for its square", "guides/diffpir.py", "(self.lam * alpha**2)", "(self.lam * alpha)", MEASURED + "::test_diffpir_is_a_proximal_point_and_renews_a_share_of_the_noise"),
    ("a resampled state with the wrong spread", "guides/hard_consistency.py", "w**0.5 * s_s", "w * s_s", METHODS + "::test_resample_draws_from_the_product_of_the_two_gaussians_of_the_paper"),
    ("conjugate gradients that climb", "guides/hard_consistency.py", "return e.detach(), -slope", "return e.detach(), slope", METHODS + "::test_conjugate_gradients_of_a_linear_operator_end_where_the_noise_allows"),
    ("an uncertainty that is liked", "guides/stsl.py", "_dot(e, e) + self.gamma", "_dot(e, e) - self.gamma", METHODS + "::test_stsl_follows_the_bound_in_the_mean_over_its_probes"),
    ("a null condition that is followed", "guides/treg.py", "null.detach() - self.rate", "null.detach() + self.rate", METHODS + "::test_treg_moves_the_null_condition_away_from_what_is_seen"),
    ("structured noise in other units", "measurements/structured.py", "self._seen(self.gain * n)", "self._seen(n)", "tests/test_measurement_noise.py::test_pairs_of_models_that_decode_pictures_are_linear_too"),
    ("a residual of the wrong sign", "measurements/measurement.py", "e = self.y.to(u) - u", "e = u - self.y.to(u)", "tests/test_reconstruct.py::test_files_of_measurements_become_samples_of_their_posteriors"),
    ("a quantised expectation that is a mean", "guides/aps.py", "u = E[torch.cdist(u, E).argmin(-1)]", "pass", "tests/test_aps.py::test_the_samples_have_the_law_of_the_bent_predictions[True]"),
    ("steps that forget where they started", "guides/aps.py", "self.rate * (log_p + rise)", "self.rate * (log_q + rise)", "tests/test_aps.py::test_the_samples_have_the_law_of_the_bent_predictions[False]"),
    ("equal letters always kept", "search/split_gibbs.py", "torch.where(z == x, same, 1.0)", "torch.where(z == x, 0.0, 1.0)", "tests/test_split_gibbs.py::test_both_copies_have_the_law_of_the_level[masked]"),
    ("a proposal that forgets its own copy", "search/split_gibbs.py", "drawn, x.gather(1, i)", "drawn, z.gather(1, i)", "tests/test_split_gibbs.py::test_both_copies_have_the_law_of_the_level[masked]"),
    ("an entropy of the wrong width", "search/active.py", ".square() / (2 * noise**2)", ".square() / (2 * noise)", "tests/test_measuring_on.py::test_the_entropy_is_that_of_the_formula_under_weights"),
    ("frames that start from unweighted samples", "search/sequential.py", "result.resample(seed) if weighed else result", "result", "tests/test_measuring_on.py::test_frames_follow_a_transition_and_weights_are_resampled"),
    ("a seed of its own", "jobs/measuring.py", "first.simulate(truth, config.seed)", "first.simulate(truth)", "tests/test_reconstruct.py::test_pictures_are_measured_with_the_noise_of_the_seed_and_compared_with"),
    ("the best of N of another solver", "jobs/steering.py", 'BEST[row["method"].endswith("second order")]', "BEST[0]", "tests/test_bench_steering.py::test_ahead_of_best_of_n_is_as_much_reward_without_a_loss"),
    ("a funnel whose first move is forgotten", "jobs/steering.py", "(q.unit - 1) * (q.unit - 2)", "(q.unit - 1) * q.unit", "tests/test_bench_steering.py::test_a_funnel_has_the_rows_of_its_quota"),
    ("completions that cost no call", "jobs/steering.py", "FEW * (1 + completions * (q.steps - 1))", "FEW * (1 + 0 * completions)", "tests/test_bench_steering.py::test_a_value_that_completes_what_it_sees_has_fewer_chains_for_its_calls_and_asks_the_network_about_none"),
    ("more calls for the best of N", "jobs/steering.py", 'AHEAD if by == "rows" else 1', "AHEAD", "tests/test_bench_steering.py::test_at_equal_calls_a_method_is_beside_the_best_of_as_many"),
    ("attention that has no second derivative", "guides/drift_lite.py", "sdpa_kernel(SDPBackend.MATH) if twice", "nullcontext() if twice", "tests/test_drift_lite.py::test_a_reward_with_attention_is_differentiated_twice"),
    ("ranks without a place for the truth", "search/coverage.py", "v * (1 + equal)", "v * equal", "tests/test_measurement_coverage.py::test_ranks_count_weights_and_put_equal_values_in_random_order"),
    ("a drift that the network does not see", "models/drifting.py", "self._share(s) * y[rows]", "0 * y[rows]", "tests/test_drifting.py"),
    ("a stationary variance of twice the size", "solvers/drifts.py", "torch.expm1(-2 * theta)", "torch.expm1(-theta)", "tests/test_drifting.py"),
    ("every rank asks the whole batch", "search/design/loop.py", "Scorer(self.own, self.model.device, world=self.world)", "Scorer(self.own, self.model.device)", "tests/test_world.py::test_bits_callbacks_checkpoints_and_errors"),
    ("compiled for each number of tokens", "models/compiled.py", "torch._dynamo.maybe_mark_dynamic(v, 0)", "pass", "tests/test_compile.py::test_a_network_is_compiled_once_for_the_whole_grid_and_for_later_runs[masked-CFG and FK]"),
    ("the compiler stays after the run", "models/compiled.py", "_compiler.reset(before)", "pass", "tests/test_compile.py::test_nothing_else_is_compiled_after_a_run_that_is_however_it_ends"),
    ("a mask that is copied in every step", "engine/checks.py", "_there(guide.beside(found, model), model.device)", "guide.beside(found, model)", "tests/test_gpu.py::test_every_guide_gives_the_same_on_host_and_device[Regions-vp-1d-pretended]"),
    ("the host reads how much is kept", "guides/keep.py", "where.sum(dtype=torch.float64)", "int(where.sum())", "tests/test_gpu.py::test_every_guide_gives_the_same_on_host_and_device[Keep-vp-1d-pretended]"),
    ("rewards before the next forward", "engine/run.py", "if not self.overlaps or self.acts[index].grad", "if True", "tests/test_no_waiting.py::test_the_network_is_asked_for_the_next_rows_before_rewards_of_these[FKSteering]"),
    ("a rank whose samples cannot be scored is broken", "engine/world.py", "listener.answered = listener.works(", "listener.answered = False and listener.works(", "tests/test_world.py::test_bits_callbacks_checkpoints_and_errors"),
    ("a rank that cannot score is excused", "engine/world.py", "listener.answered = listener.works(", "listener.answered = True or listener.works(", "tests/test_world.py::test_bits_callbacks_checkpoints_and_errors"),
    ("seeds that are told apart all at once", "engine/join.py", "for group, own in enumerate(each)]", "for group, own in [(0, tuple(each))]]", "tests/test_join.py::test_runs_that_share_the_seed_of_a_group_or_are_inside_another_are_refused"),
    ("a join that forgets what it was made of", "engine/join.py", 'result.config.get("joined") or [', "[", "tests/test_join.py::test_runs_that_share_the_seed_of_a_group_or_are_inside_another_are_refused"),
    ("the cost of one rank for that of all", "search/core.py", "own = run.world.cost(run.cost)", "own = run.cost", "tests/test_world.py::test_bits_callbacks_checkpoints_and_errors"),
    ("islands that meet always but then", "engine/islands.py", "step.index % self.every == 0", "step.index % self.every != 0", "tests/test_islands.py::test_nobody_leaves_an_island_between_two_meetings"),
    ("islands that share their noise", "engine/islands.py", "own = place if chosen.branch == 1 else chosen.slot", "own = chosen.slot", "tests/test_islands.py::test_nobody_leaves_an_island_between_two_meetings"),
    ("a full disk that tears the old file", "engine/whole.py", "        yield part\n", "        yield file\n        part.touch()\n", "tests/test_disk.py"),
    ("noise without the drift's forgetting", "solvers/drifts.py", "- (-2 * self.gamma * t).expm1()", "- (-1 * self.gamma * t).expm1()", "tests/test_drifting.py"),
    ("a rival that is worse", "search/denoising.py", "gain = own - rival", "gain = rival - own", CHECK + "::test_a_prediction_that_is_not_what_it_is_said_to_be_fails_the_denoising_test"),
    ("draws from the state of another row", "search/denoising.py", "Begin(probe.noised(t))", "Begin(probe.noised(t).roll(1, 0))", CHECK + "::test_the_data_of_a_model_pass_and_those_of_another_do_not"),
    ("a flow told as exploding noise", "integrations/comfyui.py", "1 - sigma if self.flow", "1 + 0 * sigma if self.flow", "tests/test_comfyui.py::test_fk_steering_is_that_of_guidekit_for_each_image_and_sees_decoded_ones"),
    ("latents decoded in the scale of the model", "integrations/comfyui.py", "self.vae.decode(out(part))", "self.vae.decode(part)", "tests/test_comfyui.py::test_fk_steering_is_that_of_guidekit_for_each_image_and_sees_decoded_ones"),
    ("balls that nobody looks at", "search/denoising.py", 'values["TARP"] = ', "_ = ", CHECK + "::test_balls_find_samples_that_are_right_along_every_direction"),
    ("a derivative on one side", "search/laws.py", "function(x - h * u)", "function(x)", CHECK + "::test_a_right_model_keeps_all_laws_and_every_one_is_tested"),
    ("states made in the other order", "external/proteinmpnn.py", "self.rank[near] < self.rank[:, None]", "self.rank[near] > self.rank[:, None]", "tests/test_external.py::test_the_network_is_the_sequential_decoder_on_random_weights"),
    ("positions turned the wrong way", "external/dit.py", "b * angle.cos() + a * angle.sin()", "b * angle.cos() - a * angle.sin()", "tests/test_from_checkpoint.py::test_mdlm_is_the_transformer_at_no_noise_with_the_mask_last"),
    ("a residual branch of another share", "external/edm2.py", "MIX = 0.3", "MIX = 0.5", "tests/test_from_checkpoint.py::test_edm2_keeps_magnitudes_and_is_built_from_the_names_of_its_weights"),
    ("queries that are keys", "external/edm2.py", "q, k, v = unit", "k, q, v = unit", "tests/test_from_checkpoint.py::test_edm2_keeps_magnitudes_and_is_built_from_the_names_of_its_weights"),
    ("a signal of one letter for all", "external/dit.py", "signal if signal.ndim == 3 else", "signal[:, :1] if signal.ndim == 3 else", "tests/test_from_checkpoint.py::test_d3s_transformer_adds_the_signal_to_every_letter_or_to_each_its_own"),
    ("logits one after their position", "external/bidirectional.py", "out.roll(1, 1)", "out.roll(-1, 1)", "tests/test_from_checkpoint.py::test_dream_shares_keys_and_reads_a_position_one_before_it"),
    ("a direction from rounding", "guides/perp_neg.py", "least = 4 *", "least = 0 *", MORE + "::test_perp_neg_takes_no_direction_from_rounding"),
]  # fmt: skip


SERVER = multiprocessing.get_context("forkserver")
# imported once, and not for every mutant
SERVER.set_forkserver_preload(
    ["torch", "scipy.stats", "hypothesis", "pytest", "rdkit.Chem", "pytorch_lightning", "diffusers"]
)
PLAIN = [
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:hypothesispytest",
    "--assert=plain",
]  # whatever takes time


def _tested(folder: Path, *options: str) -> None:
    """pytest on the packages of that folder, in a process of its own."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("guidekit", "rewards", "tests")]:
        del sys.modules[name]
    os.chdir(folder)
    with Path("out.txt").open("w") as out, redirect_stdout(out), redirect_stderr(out):
        try:
            code = int(pytest.main([*options]))
        except BaseException:
            traceback.print_exc()
            code = 99
        if not Path(sys.modules["guidekit"].__file__ or "").is_relative_to(folder):
            code = 98
    os._exit(code)


def passes(folder: Path, which: str, among: str = "not gpu") -> bool:
    options = ["-x", "-q", *PLAIN, "-m", among, f"--rootdir={folder}", which]
    process = SERVER.Process(target=_tested, args=(folder, *options))
    process.start()
    process.join()
    assert process.exitcode in (0, 1), f"{process.exitcode}: {(folder / 'out.txt').read_text()[-4000:]}"
    return process.exitcode == 0


def copy(folder: Path) -> Path:
    """The packages by links to their files, compiled ones too."""
    for name in ("guidekit", "rewards", "tests"):
        shutil.copytree(ROOT / name, folder / name, copy_function=os.symlink)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("name, file, line, wrong, which", MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_mutant_is_found(name: str, file: str, line: str, wrong: str, which: str, tmp_path: Path):
    path = copy(tmp_path) / "guidekit" / file
    text = path.read_text()
    assert line in text, f"the line that {name!r} changes is gone: bring this list up to date"
    path.unlink()
    path.write_text(text.replace(line, wrong))
    assert not passes(tmp_path, which)


def test_without_a_mutation_they_pass(tmp_path: Path):
    assert passes(copy(tmp_path), UNBIASED + "[SVDD-vp-1d]")
