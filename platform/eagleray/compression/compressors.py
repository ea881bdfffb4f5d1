"""The list of compressors: one line each."""

from __future__ import annotations

from eagleray.compression.automatic import Auto
from eagleray.compression.compressor import register
from eagleray.compression.int8_ring import BLOCK, Int8Ring
from eagleray.compression.momentum import Momentum
from eagleray.compression.powersgd import PowerSGD
from eagleray.compression.quantised import Quantised
from eagleray.compression.randomk import RandomK
from eagleray.compression.topk import MOMENTUM, TopK

register("none", lambda spec: Quantised("raw"))
register("fp16", lambda spec: Quantised("fp16"))
register("bf16", lambda spec: Quantised("bf16"))
register("int8", lambda spec: Quantised("int8", spec.block_size))
register("int4", lambda spec: Quantised("int4", spec.block_size))
register("int8_ring", lambda spec: Int8Ring(spec.block_size or BLOCK))
register("topk", lambda spec: TopK(spec.ratio, spec.warmup_steps, MOMENTUM * spec.momentum_correction))
register("randomk", lambda spec: RandomK(spec.ratio, spec.block_size))
register("powersgd", lambda spec: PowerSGD(spec.rank, spec.warmup_steps))
register("onebit_adam", lambda spec: Momentum("onebit_adam", "sign", spec.block_size, spec.warmup_steps))
register("fourbit_adam", lambda spec: Momentum("fourbit_adam", "int4", spec.block_size, spec.warmup_steps))
register("auto", Auto)
