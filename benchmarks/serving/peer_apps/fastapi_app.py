"""FastAPI + uvicorn, one worker, the model in its process: `uvicorn fastapi_app:app`."""

from __future__ import annotations

import numpy as np
from fastapi import FastAPI, Request
from forward import Forward
from pydantic import BaseModel

app = FastAPI()
forward = Forward()


class Asked(BaseModel):
    """The tiny model's input."""

    input: list[float]


class Told(BaseModel):
    """Its output."""

    output: list[float]


@app.post("/predict")
async def predict(asked: Asked) -> Told:
    """In JSON."""
    return Told(output=forward([asked.input])[0].tolist())


@app.post("/raw")
async def raw(request: Request) -> Told:
    """Raw float32 in, JSON out."""
    return Told(output=forward(np.frombuffer(await request.body(), np.float32)[None].copy())[0].tolist())
