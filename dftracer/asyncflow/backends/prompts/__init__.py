"""Prompts to servers of the OpenAI-compatible API, such as vLLM or Ollama."""

from dftracer.asyncflow.backends.prompts.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
