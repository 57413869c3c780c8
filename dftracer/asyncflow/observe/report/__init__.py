"""A trace as a page: who did what and when, what took long, what failed, what waited for what.

>>> from dftracer.asyncflow.observe.report import write_report
>>> write_report(["run.pfw.gz"], "report.html")  # doctest: +SKIP

On the command line: ``python -m dftracer.asyncflow report run.pfw.gz -o report.html``.
"""

from dftracer.asyncflow.observe.report.page import write_report

__all__ = ["write_report"]
