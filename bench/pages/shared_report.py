"""What processes share, and rows that are sampled: sections of ``docs/large-images.md``."""

from nerve_fast.bench.harness.words import bytes_in_words

WAYS = ("strided", "one of each part", "drawn", "standard error")


def rows_table(job: dict | None) -> list[str]:
    """Errors of sampled entropies; nothing where they have not been measured."""
    if not job:
        return []
    lines = [
        "",
        f"Which rows they are: the error of the mean of {job['count']} rows in nats, root mean "
        f"square over heads and {job['draws']} draws. Strided: every n-th, from another one each "
        "time. One of each part: rows in as many equal parts as are wanted, one drawn from each by "
        "a seed, which the package does. Drawn: without replacement. The last column is the "
        "standard error that the package reports, in the same mean.",
        "",
        "| | " + " | ".join(WAYS) + " |",
        "|---" * (len(WAYS) + 1) + "|",
    ]
    for what, found in job["graphs"].items():
        lines.append(f"| {what} | " + " | ".join(f"{found[way]:.1e}" for way in WAYS) + " |")
    graphs = job["graphs"].values()
    nearer = {
        way: sum(found["one of each part"] <= found[way] for found in graphs) for way in WAYS[:3]
    }
    lines += [
        "",
        f"One of each part is nearer than drawn rows on {nearer['drawn']} of {len(graphs)} graphs, "
        f"and nearer than strided ones on {nearer['strided']}. Neighbouring rows of an image are "
        "alike, so rows that are spread say more than rows that may lie together. How near a "
        "stride comes depends on how it meets the width of the grid, and one draw of it has no "
        "standard error; so the package draws one of each part.",
    ]
    return lines


def shared_section(memory: dict | None, predicted: dict | None) -> list[str]:
    """Memory and bytes of walks that processes share."""
    if not (memory and predicted):
        return []
    lines = [
        "## One walk, many processes",
        "",
        "`random_walk(group=…)` and `segment --share-images` share the rows of the grid. Peak "
        "resident memory of the largest share beyond its inputs, in processes of one thread each "
        "on this machine, and over that of one process:",
        "",
        "| | 1 process | 2 processes | 3 processes |",
        "|---|---|---|---|",
    ]
    for what, found in memory.items():
        one = found["1"]
        cells = [bytes_in_words(one)]
        cells += [f"{bytes_in_words(found[n])}, {found[n] / one:.2f}" for n in ("2", "3")]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Without clusters each process has all keys, of which only the rest of the memory is "
        "shared.",
        "",
        "A step costs each of `P` processes, in bytes received and as many sent, with `M` "
        "clusters, `K` labels, windows of radius `r` and rows of `w` tokens in float32: "
        "`8 M K (P − 1) / P` for the clusters' sums and `8 r w K` for the halo; without clusters "
        "`4 N K (P − 1) / P` in place of the first, and `8 (C + 1) K (P − 1) / P` on the route "
        "`factorized`, with `C` channels of all heads. "
        "`nerve-fast plan --processes P --grid H W` prints it.",
        "",
        f"**A prediction, not a measurement**, by this formula and the bound that plans take, of "
        f"{predicted['processes']} processes and {predicted['tokens']:,} tokens in a square, "
        f"{predicted['clusters']:,} clusters, {predicted['labels']} labels, 5 heads of 64 in "
        f"float32: each receives {bytes_in_words(predicted['step'])} in a step and "
        f"{bytes_in_words(predicted['once'])} before the first, and takes up to "
        f"{bytes_in_words(predicted['memory'])} beyond its inputs. No such machine was there.",
        "",
    ]
    return lines
