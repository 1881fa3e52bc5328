"""Edge audio: keyword spotting, sound events and noise suppression that run as they were measured."""

__version__ = "0.3.0"
