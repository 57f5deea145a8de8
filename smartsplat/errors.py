"""The errors a caller can meet; each message names what failed, with its values, and the way out."""

from __future__ import annotations


class SmartsplatError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SmartsplatError, ValueError):
    """A setting is impossible, or contradicts another."""


class BudgetError(ConfigError):
    """The bytes, Gaussians or memory allowed cannot hold what was asked for."""


class SourceError(SmartsplatError):
    """The image to compress cannot be read faithfully."""


class SourceUnavailable(SourceError):
    """The store that holds the image does not answer; the image may well be sound."""


class FitError(SmartsplatError):
    """A tile's Gaussians could not be fitted: what came out are no numbers, or it took longer than allowed."""


class StoreError(SmartsplatError):
    """A scene, or one tile of it, is missing, damaged or not ours."""


class StoreUnavailable(StoreError):
    """The object store that holds a scene does not answer; the scene may well be sound."""


class StorageFullError(SmartsplatError):
    """The disk under the scene has no room left; the scene resumes once there is."""


class SinkError(SmartsplatError):
    """An image cannot be written as asked."""


class StageIncomplete(SmartsplatError):
    """Some jobs of a stage failed; what succeeded is kept."""


class ArchiveIncomplete(SmartsplatError):
    """Some scenes of an archive failed; the others are done and kept."""


class NotRunning(SmartsplatError):
    """A scene is unfinished, and no run works on it."""
