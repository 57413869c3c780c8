"""SIGHUP, SIGTERM and SIGINT: they stop the program, or a notebook's cell. See ``watcher``."""

from dftracer.asyncflow.engine.signals.watcher import unwatch, watch

__all__ = ["unwatch", "watch"]
