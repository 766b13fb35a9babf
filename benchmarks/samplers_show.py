"""The table and the figure of the samplers' benchmark."""

HEAD = "| task | sampler | forward + backward | PSNR | misfit | FD | coverage | variance |"


def lines_of(tasks):
    """Returns the lines of a table in Markdown from the rows of every task, cheap samplers first."""
    lines = [HEAD, "|---" * 8 + "|"]
    for task, rows in tasks.items():
        for row in sorted(rows, key=lambda row: row["evaluations"]):
            coverage = "" if row["coverage"] is None else f"{100 * row['coverage']:.0f} %"
            numbers = f"{row['psnr']:.2f} | {row['misfit']:.1e} | {row['fd']:.2f} | {coverage}"
            variance = f"{100 * row['variance']:.0f} %" if row["variance"] < 10 else "diverges"
            passes = f"{row['forward']} + {row['backward']}"
            lines.append(f"| {task} | `{row['sampler']}` | {passes} | {numbers} | {variance} |")
    return lines


def draw(task, rows, path):
    """Draws PSNR and Frechet distance against evaluations, a line per sampler.

    Arguments:
        task: The title.
        rows: The rows of the task.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in sorted({family(row) for row in rows}):
        line = sorted((row for row in rows if family(row) == name), key=lambda row: row["evaluations"])
        for axis, key in zip(axes, ("psnr", "fd"), strict=True):
            axis.plot([r["evaluations"] for r in line], [r[key] for r in line], "o-", label=name, markersize=4)
    for axis, text in zip(axes, ("PSNR [dB]", "Frechet distance"), strict=True):
        axis.set(xscale="log", xlabel="network evaluations per image", ylabel=text)
        axis.set_xticks([20, 50, 200, 2000], ["20", "50", "200", "2000"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(task)
    figure.savefig(path, dpi=110)


def family(row):
    """Returns the line a row belongs to."""
    name = row["sampler"].split("(")[0]
    return f"{name}, first order" if "order=1" in row["sampler"] else name
