"""From rounds to medians and ratios, and to tables."""

from statistics import median

MB = 1e6


def summary(rounds: list[dict], idle: list[dict], limits: dict[str, list[dict]]) -> dict:
    """The medians of a gateway's rounds; ratios and differences are taken within a round first.

    `limits` are the rounds of `plain` and `straight`, as far as they were measured.
    """
    medians = _merge(_median, *rounds) if rounds else {}
    plain, straight = limits.get("plain", []), limits.get("straight", [])
    for cell in ("up1", "down1", "up4", "down4"):
        for name, limit, figure in (
            ("of_plain", plain, "gbps"),
            ("of_straight", straight, "gbps"),
            ("system_of_straight", straight, "system_s_per_gb"),
        ):
            ratio = _across(rounds, limit, lambda own, limit: own / limit, cell, figure)
            if ratio is not None:
                medians.setdefault(cell, {})[name] = ratio
    for kind in ("connect_us", "byte_us"):
        for percentile in ("p50", "p99"):
            added = _across(rounds, straight, lambda own, limit: own - limit, "connect1", kind, percentile)
            if added is not None:
                medians["connect1"][f"added_{kind}_{percentile}"] = added
    medians["idle"] = idle
    medians["errors"] = [
        f"round {n}: {cell}: {text}"
        for n, figures in enumerate(rounds, 1)
        for cell, text in figures["errors"].items()
    ]
    return medians


def markdown(results: dict) -> str:
    """The tables, and what has to be said about them."""
    plan, machine = results["plan"], results["machine"]
    links = "with TSO, GSO and GRO" if plan.get("offloads", True) else "without TSO, GSO and GRO"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; three network namespaces, "
        f"veth {links}, congestion control {machine['congestion']}; the router {_router(plan)}. "
        f"{plan['rounds']} interleaved rounds of "
        f"{plan['stream_seconds']:g} s a figure; medians. Everything shares these cores: ratios travel, "
        "absolute figures do not.",
        "",
        "**Throughput**, Gb/s (share of the client straight to the proxy); proxy: CPU s/GB of the benchmark's own proxy, "
        "1 stream up",
        "",
        *_table(results, ["gateway", "1 up", "1 down", "4 up", "4 down", "proxy"], _throughput_row),
        "",
        "**CPU**, s/GB: the gateway's process (user and system) with one stream and at a fixed "
        "800 Mbit/s; the whole machine (as a ratio to the client straight to the proxy), and of that in "
        "interrupts",
        "",
        *_table(
            results,
            [
                "gateway",
                "1 up",
                "1 down",
                "800M up",
                "800M down",
                "machine up",
                "down",
                "interrupts up",
                "down",
            ],
            _cpu_row,
        ),
        "",
        "**Connections**: new ones a second, 1 and 8 at a time; the gateway's CPU and system calls for one, 1 "
        "at a time (8 at a time); what it adds to "
        "connecting and to the first byte over asking the proxy directly (microseconds, p50 / p99). "
        "A gateway that accepts before the proxy has answered seems to connect sooner than is possible",
        "",
        *_table(
            results,
            ["gateway", "1 /s", "8 /s", "failed", "CPU us", "system calls", "connect +us", "first byte +us"],
            _connect_row,
        ),
        "",
        "**Memory**, resident MB: started, under load, with idle connections (how many of them still worked), "
        "and the files that are open then",
        "",
        *_table(results, ["gateway", "start", "load", *_idle_heads(results), "binary"], _memory_row),
        "",
    ]
    lines += [
        f"- {gateway['name']}: {gateway['version']}" for gateway in results["gateways"] if gateway["version"]
    ]
    lines += [f"- {name}: left out: {reason}" for name, reason in results["left_out"].items()]
    lines += [f"- {note}" for note in results["notes"]]
    for gateway in results["gateways"]:
        lines += [f"- {gateway['name']}: {error}" for error in gateway["medians"]["errors"]]
    return "\n".join(lines) + "\n"


def _router(plan: dict) -> str:
    if not plan.get("firewall"):
        return "has no firewall"
    return "tracks connections and masquerades" + (", with a flowtable" if plan.get("flowtable") else "")


def _table(results: dict, heads: list[str], row) -> list[str]:
    rows = [heads]
    rows += [[gateway["note"], *row(gateway["medians"], gateway, results)] for gateway in results["gateways"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    text = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [text[0], rule, *text[1:]]


def _throughput_row(medians, _gateway, _results):
    cells = []
    for cell in ("up1", "down1", "up4", "down4"):
        figures = medians.get(cell, {})
        gbps = figures.get("gbps")
        share = f" ({figures['of_straight']:.2f})" if "of_straight" in figures else ""
        cells.append(_number(gbps, 1 if gbps and gbps >= 10 else 2) + share)
    return [*cells, _number(medians.get("up1", {}).get("proxy_s_per_gb") or None)]


def _cpu_row(medians, _gateway, _results):
    gateway = [
        medians.get(cell, {}).get("gateway_s_per_gb") for cell in ("up1", "down1", "up_fixed", "down_fixed")
    ]
    machine = []
    for cell in ("up1", "down1"):
        figures = medians.get(cell, {})
        ratio = f" ({figures['system_of_straight']:.2f})" if "system_of_straight" in figures else ""
        machine.append(_number(figures.get("system_s_per_gb")) + ratio)
    interrupts = [medians.get(cell, {}).get("softirq_s_per_gb") for cell in ("up1", "down1")]
    return [*map(_number, gateway), *machine, *map(_number, interrupts)]


def _connect_row(medians, _gateway, _results):
    one, eight = medians.get("connect1", {}), medians.get("connect8", {})
    failed = (one.get("failed") or 0) + (eight.get("failed") or 0)

    def added(kind):
        both = [one.get(f"added_{kind}_{percentile}") for percentile in ("p50", "p99")]
        return " / ".join(_number(value, 0) for value in both)

    return [
        _number(one.get("per_second"), 0),
        _number(eight.get("per_second"), 0),
        _number(failed, 0),
        _number(one.get("gateway_us"), 0),
        _pair(one.get("gateway_syscalls"), eight.get("gateway_syscalls")),
        added("connect_us"),
        added("byte_us"),
    ]


def _memory_row(medians, gateway, results):
    cells = [_number(medians.get(key) and medians[key] / MB, 1) for key in ("rss_idle", "rss_load")]
    idle = {figures["wanted"]: figures for figures in medians["idle"]}
    for count in results["plan"]["idle"]:
        figures = idle.get(count, {})
        alive = figures.get("alive", 0)
        shown = _number(figures.get("rss") and figures["rss"] / MB, 1)
        files = f", {figures['files']:,} files" if figures.get("files") else ""
        cells.append(shown + (files if alive == count or not figures else f" ({alive} worked)"))
    size = gateway["binary_bytes"]
    return [*cells, _number(size and size / MB, 2)]


def _idle_heads(results: dict) -> list[str]:
    return [f"{count:,} idle" for count in results["plan"]["idle"]]


def _pair(one, eight) -> str:
    return "-" if one is None else f"{_number(one, 1)} ({_number(eight, 1)})"


def _number(value, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _median(values: list):
    numbers = [value for value in values if isinstance(value, int | float)]
    return median(numbers) if numbers else None


def _merge(reduce, *dicts: dict) -> dict:
    """The dicts' numbers, reduced key by key; rounds that lack one don't count for it."""
    merged = {}
    for key in dict.fromkeys(key for each in dicts for key in each if key != "errors"):
        values = [each[key] for each in dicts if key in each]
        nested = [value for value in values if isinstance(value, dict)]
        merged[key] = _merge(reduce, *nested) if nested else reduce(values)
    return merged


def _across(rounds: list[dict], limits: list[dict], combine, *path):
    """The median of what `combine` makes of a figure and the limit's in the same round."""
    pairs = [(_get(own, path), _get(limit, path)) for own, limit in zip(rounds, limits, strict=False)]
    return _median([combine(own, limit) for own, limit in pairs if own is not None and limit])


def _get(figures: dict, path):
    for key in path:
        figures = figures.get(key) if isinstance(figures, dict) else None
    return figures
