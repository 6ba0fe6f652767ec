"""Is the exchange of a cluster's blocks free of races and deadlocks, whatever the schedule?

Small PTX kernels with the instructions and the order of `csrc/cuda/team.cuh` (ClusterTeam) for two
blocks of one warp, right and broken, go through SentryWard, a static verifier. It proves the
protocol, not the compiled kernels: those wait with a time limit and poll across the grid, which it
does not take. What it was seen to miss, a lacking `fence.mbarrier_init` and a block that leaves
early, are planted faults of the simulator (`tests/test_simulator.py`). Skipped where it is not
installed (extra `oracles`).
"""

import json

import pytest

sentryward = pytest.importorskip("sentryward", reason="SentryWard is not installed")

LANES, PHASES = 32, 4
HEAD = f"""\
.version 8.6
.target sm_90a
.address_size 64

.visible .entry exchange(.param .u32 seed)
.reqntid {LANES}, 1, 1
{{
  .reg .pred first, done;
  .reg .b32 lane, peer, word, sum, barrier, there, bar_there, words;
  .shared .align 8 .b64 barriers[2];
  .shared .align 16 .b32 buffer[{2 * LANES}];

  mov.u32 lane, %tid.x;
  mov.u32 peer, %cluster_ctarank;
  xor.b32 peer, peer, 1;
  setp.eq.u32 first, lane, 0;
  ld.param.u32 word, [seed];
  add.u32 word, word, lane;
  mov.u32 barrier, barriers;
  @first mbarrier.init.shared::cta.b64 [barrier], 1;
  @first mbarrier.init.shared::cta.b64 [barrier+8], 1;
  @first fence.mbarrier_init.release.cluster;
"""
CLUSTER_SYNC = """\
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
"""


def phase(k, broken):
    """Expect the peer's words, send ours to it, wait, read: two buffers by turns."""
    buffer, parity = (0, k % 2) if broken == "one buffer" else (k % 2, k // 2 % 2)
    size = 4 * LANES + (4 if broken == "one word too many expected" else 0)
    send = f"""\
  mov.u32 barrier, barriers;
  add.u32 barrier, barrier, {8 * buffer};
  @first mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], {size};
  mapa.shared::cluster.u32 bar_there, barrier, peer;
  mov.u32 words, buffer;
  add.u32 words, words, {4 * LANES * buffer};
  mad.lo.u32 words, lane, 4, words;
  mapa.shared::cluster.u32 there, words, peer;
  st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], word, [bar_there];
"""
    wait = f"""\
wait{k}:
  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [barrier], {parity};
  @!done bra wait{k};
"""
    read = """\
  ld.shared.b32 sum, [words];
  add.u32 word, word, sum;
  bar.sync 0;
"""
    return send + ("" if broken == "nobody waits for the words" else wait) + read


def kernel(broken=""):
    alone = broken == "nobody waits for the peer's barriers"
    phases = "".join(phase(k, broken) for k in range(PHASES))
    begin = "  bar.sync 0;\n" if alone else CLUSTER_SYNC
    return f"{HEAD}{begin}{phases}{CLUSTER_SYNC}  ret;\n}}\n"


def verdict(folder, text):
    (folder / "kernel.ptx").write_text(text)
    launch = {"grid_dim": [2, 1, 1], "block_dim": [LANES, 1, 1], "cluster_dim": [2, 1, 1]}
    seed = {"parameter": "seed", "type": "u32", "value": 5}
    given = {"schema": "spverify.kernel-input/v1", "launch": launch, "arguments": [seed]}
    (folder / "input.json").write_text(json.dumps(given))
    return sentryward.verify(
        folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=120
    )


def test_two_blocks_exchange_in_any_schedule(tmp_path):
    found = verdict(tmp_path, kernel())
    assert found["result"] == "race_free", found


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("nobody waits for the words", "arrival_underflow"),
        ("one word too many expected", "not_wellsynced"),  # waits for ever
        ("nobody waits for the peer's barriers", "use_before_initialization"),
        ("one buffer", "not_wellsynced"),  # sends into what the peer may still read
    ],
)
def test_a_broken_exchange_is_found(broken, code, tmp_path):
    found = verdict(tmp_path, kernel(broken))
    assert found["result"] == "not_wellsynced", found
    assert [finding["code"] for finding in found["diagnostics"]] == [code]
