"""`/files`: a file is sent, looked after while it is labelled, and its result fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect

from featcache.serving.file_jobs import FileJob, FileJobs
from featcache.serving.request import OCTETS, Refused, body_parts
from featcache.settings import DataSettings
from featcache.system.durable import FREE_SPACE

COLUMNS = ("text_column", "pair_column")
QUERY = [
    {"name": name, "in": "query", "required": name == "name", "schema": {"type": "string"}}
    for name in ("name", *COLUMNS)
]
BODY = {"required": True, "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}


class FileRoutes:
    """The requests about files, for one application."""

    def __init__(self, app: FastAPI, jobs: FileJobs) -> None:
        self.jobs = jobs
        app.add_api_route(
            "/files", self.receive, methods=["POST"], status_code=202, response_model=None,
            openapi_extra={"parameters": QUERY, "requestBody": BODY},
        )  # fmt: skip
        app.add_api_route("/files/{id}", self.state, response_model=None)
        app.add_api_route("/files/{id}", self.remove, methods=["DELETE"], response_model=None)
        app.add_api_route("/files/{id}/labelled", self.labelled, response_model=None)
        app.add_api_route("/files/{id}/bad-rows", self.bad_rows, response_model=None)

    async def receive(self, request: Request) -> Response:
        """Take a file, which is labelled after those before it; `GET /files/ID` says how far it is."""
        asked, limits = request.query_params, self.jobs.limits
        text, pair = (asked.get(name) or None for name in COLUMNS)
        job = self.jobs.begin(asked.get("name", ""), DataSettings(text_column=text, pair_column=pair))
        too_large = Refused(
            413,
            f"{job.name} is larger than {limits.file_bytes} bytes",
            "send it in parts, or label it with: featcache predict --input FILE",
        )
        try:
            async with asyncio.timeout(limits.file_seconds):
                with job.source.open("wb") as file:
                    async for part in body_parts(request, OCTETS, limits.file_bytes, too_large):
                        file.write(part)
            self.jobs.submit(job)
            return JSONResponse(self._document(job), 202)
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            raise Refused(408, f"{job.name} did not arrive within {limits.file_seconds:g} s") from None
        except OSError as error:
            what = f"{job.name} cannot be kept here: {error.strerror or error}"
            raise Refused(507, what, FREE_SPACE) from None
        finally:
            if job.state == "arriving":
                self.jobs.remove(job)

    async def state(self, id: str) -> Response:
        """How far a file is, and what there is to know of its result."""
        return JSONResponse(self._document(self.jobs.find(id)))

    async def remove(self, id: str) -> Response:
        """Stop the work on a file, and remove it with its result."""
        self.jobs.remove(self.jobs.find(id))
        return JSONResponse({"removed": id})

    async def labelled(self, id: str) -> Response:
        """The labelled file."""
        job = self.jobs.find(id)
        if job.made is None:
            raise Refused(409, f"{job.name} is not labelled yet")
        return FileResponse(job.made.path, filename=job.result_name)

    async def bad_rows(self, id: str) -> Response:
        """The rows without a label, as JSON lines with the reasons."""
        job = self.jobs.find(id)
        if job.made is None or job.made.bad_path is None:
            raise Refused(404, f"{job.name} has no rows without a label")
        return FileResponse(job.made.bad_path, filename=f"{job.result_name}.bad.jsonl")

    def _document(self, job: FileJob) -> dict[str, Any]:
        made, error = job.made, job.error
        return {
            "id": job.id,
            "name": job.name,
            "state": job.state,
            "before": self.jobs.before(job),
            "done": job.done,
            "total": job.total,
            "notes": list(job.notes),
            "error": error and error.what,
            "hint": error and error.hint,
            "result": None
            if made is None
            else {
                "name": job.result_name,
                "rows": made.rows,
                "bad_rows": made.bad,
                "first_bad_rows": [{"line": row.line, "problem": row.problem} for row in made.first_bad],
                "truncated": made.truncated,
                "mostly_unknown": made.mostly_unknown,
                "abstained": made.abstained,
                "changed_cells": made.changed_cells,
                "counts": made.counts,
                "seconds": made.seconds,
            },
        }
