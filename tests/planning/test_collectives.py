"""Collectives are counted from a compiled program's text."""

from rag_jax.planning.collectives import count_collectives
from rag_jax.planning.hlo import read_module


def test_collectives_are_read_in_every_notation():
    text = """
%sum (x: f32[10]) -> f32[10] {
}
ENTRY %main (x: f32[8]) -> f32[8] {
      %a = bf16[4096,512]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[8,4]<=[32], dim={0}
      %b = f32[1024]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}, to
      %c = (f32[16]{0}, f32[4]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
      %d = f32[128]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}
      %e = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4]
      %f = f32[32]{0} all-gather-done(%e)
      %g = s8[100]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
      %h = f32[10]{0} all-to-all(%x), replica_groups={}, dimensions={0}
      %i = f32[10]{0} fusion(%x), kind=kLoop, calls=%sum
    """
    sent, counts, overlapped = count_collectives(read_module(text), 5)
    assert overlapped == {"all-gather": 1}
    assert counts == {
        "all-gather": 2,
        "all-reduce": 2,
        "reduce-scatter": 1,
        "collective-permute": 1,
        "all-to-all": 1,
    }
    assert sent["all-gather"] == 2 * 4096 * 512 * 3 / 4 + 4 * 32 * 3 / 4
    assert sent["all-reduce"] == 2 * 4 * 1024 * 7 / 8 + 2 * 4 * 20 / 2
    assert sent["reduce-scatter"] == 4 * 128 * 3
    assert sent["collective-permute"] == 100
    assert sent["all-to-all"] == 4 * 10 * 4 / 5
