"""Draw the README's chart of measured figures: python -m benchmarks.charts

Each figure is listed in benchmarks/RESULTS.md with the command that produced it.
"""

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

CHART = "docs/images/measured.svg"
OURS, OTHERS, INK = "#2f6fed", "#b9c0cc", "#57606a"
# Speedups on KorQuAD, which has 5 to 6 questions per article.
SPEED = {
    "training vs TRL\n(demo base, 3 M)": 5.24,
    "training vs TRL\n(Gemma 3 270M)": 11.2,
    "training vs LLaMA-Factory\n(Gemma 3 270M)": 7.5,
    "answering vs one prompt\nat a time (demo base)": 8.1,
}
# Character F1 of Gemma 3 270M on unseen articles: zero-shot, and the means of three seeds.
F1 = {
    "KorQuAD": (0.0515, (0.6215 + 0.6150 + 0.6474) / 3),
    "KLUE news": (0.0387, (0.4023 + 0.3368 + 0.3536) / 3),
}


def draw_speed(axes: plt.Axes) -> None:
    """Draw a labeled bar for each speedup."""
    bars = axes.barh(list(SPEED), list(SPEED.values()), color=OURS, height=0.55)
    axes.bar_label(bars, [f"{factor:.1f}x" for factor in SPEED.values()], padding=4, color=INK)
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    axes.set(title="speedup (1 = the other system)", xlim=(0, max(SPEED.values()) * 1.15))
    axes.invert_yaxis()


def draw_f1(axes: plt.Axes) -> None:
    """Draw F1 before and after training for each data set."""
    for position, (name, values) in enumerate(F1.items()):
        bars = axes.barh(
            [position - 0.2, position + 0.2], values, height=0.36, color=[OTHERS, OURS], label=name
        )
        labels = [f"{values[0]:.2f} zero-shot", f"{values[1]:.2f} tuned"]
        axes.bar_label(bars, labels, padding=4, color=INK)
    axes.set_yticks(range(len(F1)), list(F1))
    axes.set(title="character F1, Gemma 3 270M", xlim=(0, 1))
    axes.invert_yaxis()


def main() -> None:
    """Write the chart."""
    # A fixed hash salt and no date make the file reproducible.
    plt.rcParams.update({"svg.hashsalt": "dandap", "font.size": 9, "text.color": INK})
    plt.rcParams.update({f"{name}.color": INK for name in ("xtick", "ytick")})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    draw_speed(left)
    draw_f1(right)
    for axes in (left, right):
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(OTHERS)
        axes.xaxis.set_visible(False)
        axes.tick_params(length=0)
    figure.savefig(CHART, transparent=True, metadata={"Date": None})
    print(CHART)


if __name__ == "__main__":
    main()
