"""An environment that something was measured in, as reports tell it."""

HERE = {
    "cpu": "AMD EPYC",
    "isa": "avx2",
    "os": "Linux x86_64",
    "runtime": "onnxruntime",
    "runtime_version": "1.2",
    "precision": "fp32",
    "threads": 1,
    "batch": 1,
    "date": "2026-01-01",
}
