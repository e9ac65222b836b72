"""gk.cite: BibTeX of the methods in a list of guides."""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.guide import Guide

# class -> (key, authors, title, year, arXiv or venue)
PAPERS: dict[str, tuple[str, str, str, int, str]] = {
    "SVDD": (
        "li2024svdd",
        "Li, Xiner and Zhao, Yulai and Wang, Chenyu and Scalia, Gabriele and Eraslan, Gokcen and Nair, Surag "
        "and Biancalani, Tommaso and Ji, Shuiwang and Regev, Aviv and Levine, Sergey and Uehara, Masatoshi",
        "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding",
        2024,
        "2408.08252",
    ),
    "FKSteering": (
        "singhal2025fk",
        "Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and McKeown, "
        "Kathleen and Ranganath, Rajesh",
        "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
        2025,
        "2501.06848",
    ),
    "TDS": (
        "wu2023tds",
        "Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.",
        "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
        2023,
        "2306.17775",
    ),
    "DAS": (
        "kim2025das",
        "Kim, Sunwoo and Kim, Minkyu and Park, Dongmin",
        "Test-time Alignment of Diffusion Models without Reward Over-optimization",
        2025,
        "2501.05803",
    ),
    "Corrector": (
        "skreta2025fkc",
        "Skreta, Marta and others",
        "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts",
        2025,
        "2503.02819",
    ),
    "BeamSearch": (
        "li2025dsearch",
        "Li, Xiner and Uehara, Masatoshi and Su, Xingyu and Scalia, Gabriele and Biancalani, Tommaso and "
        "Regev, Aviv and Levine, Sergey and Ji, Shuiwang",
        "Dynamic Search for Inference-Time Alignment in Diffusion Models",
        2025,
        "2503.02039",
    ),
    "BestOfN": (
        "beirami2024bestofn",
        "Beirami, Ahmad and others",
        "Theoretical Guarantees on the Best-of-n Alignment Policy",
        2024,
        "2401.01879",
    ),
    "Resample": (
        "delmoral2002smc",
        "Del Moral, Pierre and Doucet, Arnaud and Jasra, Ajay",
        "Sequential Monte Carlo Samplers",
        2002,
        "cond-mat/0212648",
    ),
    "DDCM": (
        "ohayon2025ddcm",
        "Ohayon, Guy and Manor, Hila and Michaeli, Tomer and Elad, Michael",
        "Compressed Image Generation with Denoising Diffusion Codebook Models",
        2025,
        "2502.01189",
    ),
    "StartFrom": (
        "meng2021sdedit",
        "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and "
        "Ermon, Stefano",
        "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
        2021,
        "2108.01073",
    ),
    "CFG": (
        "ho2022cfg",
        "Ho, Jonathan and Salimans, Tim",
        "Classifier-Free Diffusion Guidance",
        2022,
        "2207.12598",
    ),
    "APG": (
        "sadat2024apg",
        "Sadat, Seyedmorteza and Hilliges, Otmar and Weber, Romann M.",
        "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
        2024,
        "2410.02416",
    ),
    "CFGZero": (
        "fan2025cfgzero",
        "Fan, Weichen and Zheng, Amber Yijia and Yeh, Raymond A. and Liu, Ziwei",
        "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
        2025,
        "2503.18886",
    ),
    "TCFG": (
        "kwon2025tcfg",
        "Kwon, Mingi and others",
        "TCFG: Tangential Damping Classifier-free Guidance",
        2025,
        "2503.18137",
    ),
    "MagnitudeAware": (
        "zhu2025mambog",
        "Zhu, Shangwen and Peng, Qianyu and Shu, Zhilei and Hu, Yuting and Yang, Zhantao and Zhang, Han and "
        "Pu, Zhao and Zheng, Andy and Cui, Xinyu and Zhao, Jian and Feng, Ruili and Cheng, Fan",
        "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance",
        2025,
        "2508.03442",
    ),
    "CFGpp": (
        "chung2024cfgpp",
        "Chung, Hyungjin and Kim, Jeongsol and Park, Geon Yeong and Nam, Hyelin and Ye, Jong Chul",
        "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
        2024,
        "2406.08070",
    ),
    "CADS": (
        "sadat2023cads",
        "Sadat, Seyedmorteza and Buhmann, Jakob and Bradley, Derek and Hilliges, Otmar and Weber, Romann M.",
        "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling",
        2023,
        "2310.17347",
    ),
    "PAG": (
        "ahn2024pag",
        "Ahn, Donghoon and others",
        "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
        2024,
        "2403.17377",
    ),
    "SEG": (
        "hong2024seg",
        "Hong, Susung",
        "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention",
        2024,
        "2408.00760",
    ),
    "SLG": (
        "hyung2024stg",
        "Hyung, Junha and others",
        "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling",
        2024,
        "2411.18664",
    ),
    "AutoGuidance": (
        "karras2024autoguidance",
        'Karras, Tero and Aittala, Miika and Kynk{\\"a}{\\"a}nniemi, Tuomas and Lehtinen, Jaakko and Aila, Timo'
        " and Laine, Samuli",
        "Guiding a Diffusion Model with a Bad Version of Itself",
        2024,
        "2406.02507",
    ),
    "Distillation": (
        "park2024distillationpp",
        "Park, Geon Yeong and Lee, Sang Wan and Ye, Jong Chul",
        "Inference-Time Diffusion Model Distillation",
        2024,
        "2412.08871",
    ),
    "HiGS": (
        "sadat2025higs",
        "Sadat, Seyedmorteza and Salehi, Farnood and Weber, Romann M.",
        "HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models",
        2025,
        "2509.22300",
    ),
    "MinorityGuidance": (
        "um2023minority",
        "Um, Soobin and Lee, Suhyeon and Ye, Jong Chul",
        "Don't Play Favorites: Minority Guidance for Diffusion Models",
        2023,
        "2301.12334",
    ),
    "SelfGuidedMinority": (
        "um2024selfguided",
        "Um, Soobin and Ye, Jong Chul",
        "Self-Guided Generation of Minority Samples Using Diffusion Models",
        2024,
        "2407.11555",
    ),
    "BoostAndSkip": (
        "um2025boostandskip",
        "Um, Soobin and Kim, Beomsu and Ye, Jong Chul",
        "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation",
        2025,
        "2502.06516",
    ),
    "TFG": (
        "ye2024tfg",
        "Ye, Haotian and Lin, Haowei and Han, Jiaqi and Xu, Minkai and Liu, Sheng and Liang, Yitao and Ma, "
        "Jianzhu and Zou, James and Ermon, Stefano",
        "TFG: Unified Training-Free Guidance for Diffusion Models",
        2024,
        "2409.15761",
    ),
    "DPS": (
        "chung2022dps",
        "Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul",
        "Diffusion Posterior Sampling for General Noisy Inverse Problems",
        2022,
        "2209.14687",
    ),
    "LGD": (
        "song2023lgd",
        "Song, Jiaming and Zhang, Qinsheng and Yin, Hongxu and Mardani, Morteza and Liu, Ming-Yu and Kautz, "
        "Jan and Chen, Yongxin and Vahdat, Arash",
        "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation",
        2023,
        "International Conference on Machine Learning",
    ),
    "MPGD": (
        "he2023mpgd",
        "He, Yutong and Murata, Naoki and Lai, Chieh-Hsin and Takida, Yuhta and Uesaka, Toshimitsu and Kim, "
        "Dongjun and Liao, Wei-Hsiang and Mitsufuji, Yuki and Kolter, J. Zico and Salakhutdinov, Ruslan and "
        "Ermon, Stefano",
        "Manifold Preserving Guided Diffusion",
        2023,
        "2311.16424",
    ),
    "FreeDoM": (
        "yu2023freedom",
        "Yu, Jiwen and Wang, Yinhuai and Zhao, Chen and Ghanem, Bernard and Zhang, Jian",
        "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model",
        2023,
        "2303.09833",
    ),
    "UGD": (
        "bansal2023ugd",
        "Bansal, Arpit and Chu, Hong-Min and Schwarzschild, Avi and Sengupta, Soumyadip and Goldblum, Micah "
        "and Geiping, Jonas and Goldstein, Tom",
        "Universal Guidance for Diffusion Models",
        2023,
        "2302.07121",
    ),
    "ClassifierGuidance": (
        "dhariwal2021classifier",
        "Dhariwal, Prafulla and Nichol, Alex",
        "Diffusion Models Beat GANs on Image Synthesis",
        2021,
        "2105.05233",
    ),
    "GFCG": (
        "shenoy2024gfcg",
        "Shenoy, Rahul and Pan, Zhihong and Balakrishnan, Kaushik and Cheng, Qisen and Jeon, Yongmoon and "
        "Yang, Heejune and Kim, Jaewon",
        "Gradient-Free Classifier Guidance for Diffusion Model Sampling",
        2024,
        "2411.15393",
    ),
    "AdvDiff": (
        "dai2023advdiff",
        "Dai, Xuelong and Liang, Kaisheng and Xiao, Bin",
        "AdvDiff: Generating Unrestricted Adversarial Examples using Diffusion Models",
        2023,
        "2307.12499",
    ),
    "DCBG": (
        "schiff2024simple",
        "Schiff, Yair and Sahoo, Subham Sekhar and others",
        "Simple Guidance Mechanisms for Discrete Diffusion Models",
        2024,
        "2412.10193",
    ),
    "TAG": (
        "nisonoff2024unlocking",
        "Nisonoff, Hunter and Xiong, Junhao and Allenspach, Stephan and Listgarten, Jennifer",
        "Unlocking Guidance for Discrete State-Space Diffusion and Flow Models",
        2024,
        "2406.01572",
    ),
    "Compose": (
        "liu2022compose",
        "Liu, Nan and Li, Shuang and Du, Yilun and Torralba, Antonio and Tenenbaum, Joshua B.",
        "Compositional Visual Generation with Composable Diffusion Models",
        2022,
        "2206.01714",
    ),
    "Mixture": (
        "skreta2024superdiff",
        "Skreta, Marta and others",
        "The Superposition of Diffusion Models Using the It{\\^o} Density Estimator",
        2024,
        "2412.17762",
    ),
    "Views": (
        "geng2023anagrams",
        "Geng, Daniel and Park, Inbum and Owens, Andrew",
        "Visual Anagrams: Generating Multi-View Optical Illusions with Diffusion Models",
        2023,
        "2311.17919",
    ),
    "Switch": (
        "balaji2022ediffi",
        "Balaji, Yogesh and others",
        "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert Denoisers",
        2022,
        "2211.01324",
    ),
    "MagicMix": (
        "liew2022magicmix",
        "Liew, Jun Hao and Yan, Hanshu and Zhou, Daquan and Feng, Jiashi",
        "MagicMix: Semantic Mixing with Diffusion Models",
        2022,
        "2210.16056",
    ),
    "Regions": (
        "kwon2024tweediemix",
        "Kwon, Gihyun and Ye, Jong Chul",
        "TweedieMix: Improving Multi-Concept Fusion for Diffusion-based Image/Video Generation",
        2024,
        "2410.05591",
    ),
    "Hallucination": (
        "aithal2024hallucinations",
        "Aithal, Sumukh K. and Maini, Pratyush and Lipton, Zachary C. and Kolter, J. Zico",
        "Understanding Hallucinations in Diffusion Models through Mode Interpolation",
        2024,
        "2406.09358",
    ),
}


def cite(guides: Guide | Iterable[Guide]) -> str:
    """BibTeX entries of the papers behind these guides, each once, in the order of the list.

    A guide of your own is cited where its class has a text `bibtex`.

    >>> import guidekit as gk
    >>> print(gk.cite([gk.CFG(3.0), gk.CFG(2.0)]))
    @misc{ho2022cfg,
      author = {Ho, Jonathan and Salimans, Tim},
      title = {Classifier-Free Diffusion Guidance},
      year = {2022},
      eprint = {2207.12598},
      archivePrefix = {arXiv}
    }
    """
    listed = [guides] if isinstance(guides, Guide) else list(guides)
    if not all(isinstance(g, Guide) for g in listed):
        raise TypeError(f"cite takes guides, not {listed!r}")
    return "\n\n".join(dict.fromkeys(entry for g in listed if (entry := _entry(type(g)))))


def _entry(kind: type[Guide]) -> str:
    own = getattr(kind, "bibtex", None)
    if own is not None or kind.__name__ not in PAPERS or not kind.__module__.startswith("guidekit."):
        return own or ""
    key, authors, title, year, arxiv = PAPERS[kind.__name__]
    where = {"eprint": arxiv, "archivePrefix": "arXiv"} if arxiv[-1].isdigit() else {"howpublished": arxiv}
    fields = {"author": authors, "title": title, "year": year, **where}
    return f"@misc{{{key},\n" + ",\n".join(f"  {k} = {{{v}}}" for k, v in fields.items()) + "\n}"
