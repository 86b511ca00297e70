"""The section "Hospitals and fairness": figures of all or of the extreme hospitals."""

from fairjax.report import figures, final_section, formats, markup
from fairjax.report.run import Row, Run

WORST, BEST = 20, 5
"""The worst and the best hospitals that the table lists when it cannot list all."""


def section(run: Run) -> str:
    """The table of hospitals in the last evaluated round; "" before there is one."""
    if not run.clients:
        return ""
    finals = run.final_rounds[0][1].get("clients") or () if run.final_rounds else ()
    final_by_client = {row["client"]: row for row in finals}
    keys = dict.fromkeys(key for row in finals for key in row)
    extra_keys = [key for key in keys if key not in run.clients[0]]
    client_rows = run.by_accuracy
    missing_rows = [row for row in run.clients if row.get("accuracy") is None]
    round_number = run.clients[0]["round"]

    def cells(row: Row) -> list[str]:
        final_row = final_by_client.get(row["client"], {})
        return _client_cells(run, row) + [
            formats.estimate(final_row.get(key)) for key in extra_keys
        ]

    note = f"Full model on each hospital's own test records after round {round_number}"
    if len(run.clients) <= figures.MAX_NAMED:
        rows = [cells(row) for row in client_rows + missing_rows]
        note += ", worst accuracy first."
    else:
        ranked_clients = run.ranked_clients
        middle_rows = ranked_clients[WORST : max(len(ranked_clients) - BEST, WORST)]
        rows = [cells(row) for row in ranked_clients[:WORST]]
        if middle_rows:
            rows.append([f"… {len(middle_rows)} hospitals in between"])
        rows += [cells(row) for row in ranked_clients[WORST + len(middle_rows) :]]
        if n_small := len(client_rows) - len(ranked_clients):
            condition = f"fewer than {run.min_test_records} records"
            rows.append([f"… {n_small} hospitals with {condition}"])
        note += (
            f": the {WORST} worst and the {BEST} best of {len(run.clients)} hospitals "
            "by accuracy. clients.jsonl holds all of them."
        )
        if missing_rows:
            note += f" {len(missing_rows)} have no estimate."
    if any(map(run.is_small, run.clients)):
        note += (
            f" Hospitals marked {formats.SMALL_MARK} have fewer than "
            f"{run.min_test_records} test records: their figures say little, and they "
            "are listed last."
        )
    if extra_keys:
        note += final_section.positive_class_note(run.final_rounds[0][1])
    note += (
        " Weight: the hospital's weight in the average of that round, unknown for a "
        "hospital outside its cohort. Own sub-model: the one that its tier can carry."
    )
    head = ["hospital", "tier", "test records", "weight", "accuracy"]
    head += ["own sub-model", "AUROC", "loss", *map(formats.metric, extra_keys)]
    return markup.table(note, head, rows)


def _client_cells(run: Run, row: Row) -> list[str]:
    mark = f" {formats.SMALL_MARK}" if run.is_small(row) else ""
    return [
        str(row["client"]),
        formats.plain(row.get("tier")),
        formats.count(row.get("n")) + mark,
        formats.percent(row.get("weight")),
        formats.percent(row.get("accuracy")),
        formats.percent(row.get("own_accuracy")),
        formats.decimal(row.get("auroc")),
        formats.decimal(row.get("loss")),
    ]
