"""The SDK: what an application or a script needs to reach a cluster, without ray or torch."""

from eagleray.client.jobs import Job, JobClient
from eagleray.client.package import Package, pack
from eagleray.client.submission import submit_resume, submit_run

__all__ = ["Job", "JobClient", "Package", "pack", "submit_resume", "submit_run"]
