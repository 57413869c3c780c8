"""Files that tasks read and write, and how they get to where a task runs."""

from dftracer.asyncflow.data.files import URL_SCHEMES, File, InputFile, OutputFile

__all__ = ["URL_SCHEMES", "File", "InputFile", "OutputFile"]
