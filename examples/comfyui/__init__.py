"""Nodes of ComfyUI: copy this folder into ComfyUI/custom_nodes, and install guidekit into its Python.

A reward node feeds a sampler node, whose SAMPLER goes into SamplerCustom or SamplerCustomAdvanced. Written from
ComfyUI's documented protocol of nodes; it holds no code of ComfyUI.
"""

from __future__ import annotations

import guidekit as gk
from guidekit.integrations.comfyui import Sampler, searched, steered
from guidekit.jobs import names

SEARCHES = {"zero_order": gk.search.zero_order, "random": gk.search.random}
JUDGED = {"reward": ("GUIDEKIT_REWARD",), "vae": ("VAE",)}
ROWS = ("INT", {"default": 4, "min": 1, "max": 4096, "tooltip": "Images in one call of the network and of the VAE."})


class Reward:
    """Rewards of images by name, one on each line, as on guidekit's command line: brightness, clip('a red bag'):0.5."""

    CATEGORY, FUNCTION, RETURN_TYPES = "guidekit", "make", ("GUIDEKIT_REWARD",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"rewards": ("STRING", {"default": "brightness", "multiline": True})}}

    def make(self, rewards):
        parts = names.make_components([line.strip() for line in rewards.splitlines() if line.strip()])
        other = [part.name for part in parts if part.domain not in (None, "images")]
        if other or not parts:
            raise ValueError(
                f"rewards of images are needed, not {', '.join(other) or 'none'}: see `guidekit list rewards`"
            )
        return (names.total(parts),)


class FKSteering:
    """Particles of which those with higher rewards live on (Singhal et al., 2025); the best of the last is returned."""

    CATEGORY, FUNCTION, RETURN_TYPES = "guidekit", "make", ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                **JUDGED,
                "particles": ("INT", {"default": 8, "min": 2, "max": 4096}),
                "alpha": ("FLOAT", {"default": 0.1, "min": 1e-6, "step": 0.01, "tooltip": "Small is strong."}),
                "every": ("INT", {"default": 5, "min": 1, "tooltip": "Steps from one scoring to the next."}),
                "eta": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "Noise of a step."}),
                "batch_size": ROWS,
            }
        }

    def make(self, reward, vae, particles, alpha, every, eta, batch_size):
        guide = gk.FKSteering(reward, alpha=alpha, every=every)
        return (Sampler(steered(particles, [guide], gk.solvers.DDIM(eta)), vae, batch_size),)


class RewardSearch:
    """A search of the noise for an image of high reward (Ma et al., 2025), by deterministic DDIM."""

    CATEGORY, FUNCTION, RETURN_TYPES = "guidekit", "make", ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                **JUDGED,
                "strategy": (list(SEARCHES),),
                "rounds": ("INT", {"default": 4, "min": 1, "max": 4096}),
                "candidates": ("INT", {"default": 4, "min": 1, "max": 4096, "tooltip": "Images of a round."}),
                "batch_size": ROWS,
            }
        }

    def make(self, reward, vae, strategy, rounds, candidates, batch_size):
        each = "neighbours" if strategy == "zero_order" else "candidates"
        run = searched(SEARCHES[strategy], reward, gk.solvers.DDIM(), rounds=rounds, **{each: candidates})
        return (Sampler(run, vae, batch_size),)


NODE_CLASS_MAPPINGS = {"GuidekitReward": Reward, "GuidekitFKSteering": FKSteering, "GuidekitRewardSearch": RewardSearch}
NODE_DISPLAY_NAME_MAPPINGS = {
    "GuidekitReward": "Reward (guidekit)",
    "GuidekitFKSteering": "FK steering (guidekit)",
    "GuidekitRewardSearch": "Reward search (guidekit)",
}
