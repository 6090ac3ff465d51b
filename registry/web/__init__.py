"""The server before the engine, and its client: what travels, who may ask, and the protocols that are spoken.

Reading order: ``bodies``, ``telemetry``, ``gate``, ``asking``, ``stream``, ``huggingface``, ``open_inference``,
``page``, ``app``, ``client``. To the left: ``bulk``. To the right: ``interop``.
"""
