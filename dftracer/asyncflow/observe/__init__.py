"""What can be seen of a run: history, counts, the graph, telemetry, traces, reports."""
