"""Sentences of docs/RESULTS.md that no number decides."""

from __future__ import annotations

DESCRIPTIONS = {
    "adm": "plain ADM, no guidance",
    "adm-g": "classifier guidance (Dhariwal & Nichol 2021)",
    "eds": "ADM-G with entropy-aware scaling (ED-DPM, ECCV 2022)",
    "eds-ect": "the same with the classifier of entropy-constraint training",
    "low-confidence": "guidance toward a target confidence (arXiv 2606.13347)",
    "predicted-real": "ADM-G with predicted-real-image guidance (arXiv 2606.13347), its schedule from the sweep",
    "low-density": "low-confidence and predicted-real-image guidance, the method of arXiv 2606.13347",
    "entropy": "ascent of the classifier's entropy, an ablation of low-confidence",
    "self-guided": "self-guided minority sampling (Um & Ye, ECCV 2024)",
    "boost-and-skip": "boost-and-skip (ICML 2025)",
}
"""What a method is, by its name without the prefix of unconditional models."""

FINAL = (
    "Mean ± standard deviation over seeds. Tail recall and tail coverage are those of the rarest reference images; on "
    "class (by the judge; guide: by the guiding classifier), confidence and entropy (nats) are means. Real images: as "
    "many of them, held out from the reference; their confidence, entropy and on-class rate are the reference's. "
    "Images/s are of one core of whichever machine made the row. Rows were made on several, up to three times apart in "
    "speed: that column compares no methods."
)
ABLATION_TEXT = (
    "Its terms alone and together, {count} images a seed on seeds of their own, so that FID is not that of the tables "
    "above. Variance is that of the features, summed over them, as a share of the real images'."
)
REPRODUCE = (
    "`make reproduce` makes every image, takes up where it was stopped, and writes this page, its figures and "
    "[results.json](results.json)."
)
LIMITS = """
- FID here is the Fréchet distance of EfficientNet-lite0 features, not of Inception's: compare it within this page,
  never with published numbers. The same holds for precision, recall, density and coverage, which are of these features.
- Recall and coverage grow, and FID falls, with the number of images: all rows have the same, which the settings name.
- One small model of one data set, 28 px grey: what holds here need not hold on ImageNet.
- Spread is over sampling seeds. All rows share the trained networks, so it says nothing of another training run's.
- Only the abstract of arXiv 2606.13347 was at hand: the formulas of the low-confidence and the predicted-real-image
  term are a reconstruction ([METHODS.md](METHODS.md)). Self-guided measures distance in the classifier's features,
  where the paper takes LPIPS.
""".strip()
