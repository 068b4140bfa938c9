"""Loops with all of their turns, against the compiler's own counts and against the same program
without loops; kernels and memories by programs' texts."""

import jax
import jax.numpy as jnp
import pytest
from tiny import make_decoder

from rag_jax.planning.collectives import count_collectives
from rag_jax.planning.hlo import read_module
from rag_jax.planning.loops import count_computation, count_kernel, count_runs, scale_counts


def compile_gradients(scan_layers):
    model, params = make_decoder(num_layers=3, hidden_size=64, ffn_size=128)
    model = model.clone(scan_layers=scan_layers, remat="full")
    tokens = jnp.ones((2, 16), jnp.int32)
    embed = {"embed": params.pop("embed")}  # the CPU writes its gradient as a loop
    loss = lambda params: model.apply({"params": params | embed}, tokens).sum()  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params).compile()


def read_counts(compiled):
    counts = compiled.cost_analysis()
    return counts["flops"], counts["bytes accessed"]


@pytest.fixture(scope="module")
def listed():
    return compile_gradients(scan_layers=False)


def test_a_program_without_loops_keeps_the_compilers_counts(listed):
    module = read_module(listed.as_text())
    assert count_runs(module) == [(module.entry, 1)]
    assert scale_counts(module, 5.0, 7.0) == (5.0, 7.0)
    own, (flops, accessed) = count_computation(module, module.entry), read_counts(listed)
    assert own.flops == pytest.approx(flops, rel=0.02)
    assert own.accessed == pytest.approx(accessed, rel=0.15)


def test_scanned_layers_have_the_operations_of_listed_ones(listed):
    scanned = compile_gradients(scan_layers=True)
    wanted, once = read_counts(listed)[0], read_counts(scanned)[0]
    assert once < 0.6 * wanted  # what the compiler says
    found, _ = scale_counts(read_module(scanned.as_text()), *read_counts(scanned))
    assert found == pytest.approx(wanted, rel=0.02)


def test_loops_in_loops_multiply():
    def turn(x, _):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, None, length=5)[0], None

    run = jax.jit(lambda x: jax.lax.scan(turn, x, None, length=3)[0])
    compiled = run.lower(jnp.ones((64, 64))).compile()
    flops, _ = scale_counts(read_module(compiled.as_text()), *read_counts(compiled))
    assert flops == pytest.approx(15 * 2 * 64**3, rel=0.02)


def test_a_loop_that_data_end_counts_once():
    run = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x))
    compiled = run.lower(jnp.ones((64, 64))).compile()
    counts = read_counts(compiled)
    assert scale_counts(read_module(compiled.as_text()), *counts) == pytest.approx(counts)


@pytest.mark.parametrize(
    "called",
    [
        "true_computation=%first, false_computation=%second.1",
        "branch_computations={%first, %second.1}",
    ],
)
def test_both_forms_of_a_branch_name_its_computations(called):
    module = read_module(BRANCHES.replace("CALLED", called))
    assert count_runs(module) == [("main", 1), ("first", 1), ("second.1", 1)]


BRANCHES = """
HloModule jit_step, is_scheduled=true

%first (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}

%second.1 (b: f32[8]) -> f32[8] {
  ROOT %b = f32[8]{0} parameter(0)
}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %branch = f32[8]{0} conditional(%p, %x, %x), CALLED, metadata={op_name="jit(step)/cond"}
}
"""

# As the TPU compiler writes programs: without the number of turns, and with products as windows.
TPU = """
HloModule jit_step, is_scheduled=true

%begin (p: bf16[256,64]) -> (bf16[256,64], bf16[1024,64]) {
  %p = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[1024,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4]
  ROOT %start = (bf16[256,64]{1,0}, bf16[1024,64]{1,0}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[256,64], g: bf16[1024,64], q: bf16[8,64]) -> \
(bf16[8,32], bf16[256,64], bf16[1024,64], bf16[1024,64]) {
  %p = bf16[256,64]{1,0} parameter(0)
  %g = bf16[1024,64]{1,0} parameter(1)
  %gather.2 = bf16[1024,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4]
  %q = bf16[8,64]{1,0} parameter(2)
  %w = bf16[64,32]{1,0} constant({...})
  %product = bf16[8,32]{1,0} convolution(%q, %w), dim_labels=bf_io->bf
  ROOT %t = (bf16[8,32]{1,0}, bf16[256,64]{1,0}, bf16[1024,64]{1,0}, bf16[1024,64]{1,0}) \
tuple(%product, %p, %g, %gather.2)
}

%end (p: bf16[256,64], g: bf16[1024,64]) -> bf16[1024,64] {
  %p = bf16[256,64]{1,0} parameter(0)
  %g = bf16[1024,64]{1,0} parameter(1)
  %gather.3 = bf16[1024,64]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4]
  ROOT %done = bf16[1024,64]{1,0} custom-call(%p, %g, %gather.3), \
custom_call_target="AsyncCollectiveDone"
}

%body (s: (s32[], bf16[8,64], bf16[256,64])) -> (s32[], bf16[8,64], bf16[256,64]) {
  %s = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)S(1)}, bf16[256,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %q = bf16[8,64]{1,0:T(8,128)S(1)} get-tuple-element(%s), index=1
  %p = bf16[256,64]{1,0} get-tuple-element(%s), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %begun = (bf16[256,64]{1,0}, bf16[1024,64]{1,0}) fusion(%p), calls=%begin
  %g = bf16[1024,64]{1,0} get-tuple-element(%begun), index=1
  %y = (bf16[8,32]{1,0:S(1)}, bf16[256,64]{1,0}, bf16[1024,64]{1,0}, bf16[1024,64]{1,0}) \
fusion(%p, %g, %q), kind=kOutput, calls=%async_collective_fusion.1
  %gathered = bf16[1024,64]{1,0} fusion(%p, %g), kind=kCustom, calls=%end
  %sum = bf16[8,64]{1,0} all-reduce(%q), channel_id=2, replica_groups=[2,2]<=[4], to_apply=%plus
  ROOT %t = (s32[], bf16[8,64], /*index=2*/bf16[256,64]) tuple(%next, %q, /*index=2*/%p)
}

%condition (s: (s32[], bf16[8,64], bf16[256,64])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)S(1)}, bf16[256,64]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(14)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (s: (s32[], bf16[8,64], bf16[256,64])) -> (s32[], bf16[8,64], bf16[256,64]) {
  %s = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)S(1)}, bf16[256,64]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,64], bf16[256,64]) while(%s), condition=%condition, body=%body
}
"""


def test_a_tpus_loop_is_counted_from_its_condition_and_step():
    module = read_module(TPU)
    assert dict(count_runs(module)) == {"main": 1, "condition": 7, "body": 7}
    work = count_computation(module, "body")
    assert work.flops == 2 * 8 * 64 * 32 + 1
    # Of what is read and written, the gather's rows (where it starts and where it is done, and not
    # by the product beside it), the sum and the counter are not on the chip.
    assert work.moved == 2 * 256 * 64 + 2 * 1024 * 64 + 2 * 8 * 64 + 3 * 4


def test_a_collective_in_several_fusions_is_one_and_a_loop_repeats_it():
    sent, counts, overlapped = count_collectives(read_module(TPU), 4)
    assert counts == {"all-gather": 7, "all-reduce": 7}
    assert overlapped == {"all-gather": 7}
    assert sent["all-gather"] == 7 * 2 * 1024 * 64 * 3 / 4
    assert sent["all-reduce"] == 7 * 2 * 8 * 64 * 2 * 1 / 2


def test_of_stacked_weights_that_are_sliced_in_a_fusion_a_slice_is_read():
    """Also where the slice is taken by a fusion within the fusion."""
    text = """
%cut (p: bf16[32,64,16], i: s32[]) -> bf16[64,16] {
  %p = bf16[32,64,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,64,16]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,64,16}
  ROOT %layer = bf16[64,16]{1,0} bitcast(%slice)
}

%multiply (x: bf16[8,64], p: bf16[32,64,16], i: s32[]) -> bf16[8,16] {
  %x = bf16[8,64]{1,0} parameter(0)
  %p = bf16[32,64,16]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %w = bf16[64,16]{1,0} fusion(%p, %i), kind=kLoop, calls=%cut
  ROOT %y = bf16[8,16]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,64], p: bf16[32,64,16], i: s32[]) -> bf16[8,16] {
  %x = bf16[8,64]{1,0} parameter(0)
  %p = bf16[32,64,16]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = bf16[8,16]{1,0} fusion(%x, %p, %i), kind=kOutput, calls=%multiply
}
"""
    work = count_computation(read_module(text), "main")
    assert work.flops == 2 * 8 * 64 * 16
    assert work.accessed == 2 * (8 * 64 + 64 * 16 + 8 * 16) + 4


_CUT = "\n  %w = bf16[64,16]{1,0} slice(%all), slice={[0:64], [0:16]}"


@pytest.mark.parametrize(("size", "flat", "cut"), [(64, "w", ""), (256, "all", _CUT)])
def test_what_a_fusion_within_a_fusion_passes_on_is_read_where_it_goes(size, flat, cut):
    """Whole, or the slice of it that is taken then."""
    text = f"""
%flatten (p: bf16[1,{size},16]) -> bf16[{size},16] {{
  %p = bf16[1,{size},16]{{2,1,0}} parameter(0)
  ROOT %flat = bf16[{size},16]{{1,0}} bitcast(%p)
}}

%multiply (x: bf16[8,64], p: bf16[1,{size},16]) -> bf16[8,16] {{
  %x = bf16[8,64]{{1,0}} parameter(0)
  %p = bf16[1,{size},16]{{2,1,0}} parameter(1)
  %{flat} = bf16[{size},16]{{1,0}} fusion(%p), kind=kLoop, calls=%flatten{cut}
  ROOT %y = bf16[8,16]{{1,0}} convolution(%x, %w), dim_labels=bf_io->bf
}}

ENTRY %main (x: bf16[8,64], p: bf16[1,{size},16]) -> bf16[8,16] {{
  %x = bf16[8,64]{{1,0}} parameter(0)
  %p = bf16[1,{size},16]{{2,1,0}} parameter(1)
  ROOT %y = bf16[8,16]{{1,0}} fusion(%x, %p), kind=kOutput, calls=%multiply
}}
"""
    work = count_computation(read_module(text), "main")
    assert work.accessed == 2 * (8 * 64 + 64 * 16 + 8 * 16)


def test_a_window_counts_the_places_that_meet_the_input():
    """A batch of eight products, as a window that meets one place of each output's, and a sum."""
    text = """
ENTRY %main (x: bf16[128,2,16,1], w: bf16[8,32,2,16]) -> bf16[128,8,32,1] {
  %x = bf16[128,2,16,1]{2,1,0,3} parameter(0)
  %w = bf16[8,32,2,16]{3,2,1,0} parameter(1)
  ROOT %y = bf16[128,8,32,1]{2,1,0,3} convolution(%x, %w), \
window={size=8x2 pad=7_7x0_0 rhs_reversal=1x0}, dim_labels=b1f0_0o1i->b0f1
}
"""
    assert count_computation(read_module(text), "main").flops == 2 * 128 * 8 * 32 * 2 * 16


@pytest.mark.parametrize(("kernel", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
@pytest.mark.parametrize("causal", [True, False])
def test_an_attention_kernel_computes_the_tiles_of_its_mask(kernel, products, causal):
    places = ", s32[2560,128]{1,0}" if causal else ""
    text = f"""
ENTRY %main (q: bf16[8,2560,128]) -> bf16[8,2560,128] {{
  %q = bf16[8,2560,128]{{2,1,0}} parameter(0)
  ROOT %splash_mha_{kernel}_segmented.3 = bf16[8,2560,128]{{2,1,0}} custom-call(%q), \
custom_call_target="tpu_custom_call", operand_layout_constraints={{s8[1,5,5]{{2,1,0}}, \
s8[1,5,5]{{2,1,0}}, bf16[8,2560,128]{{2,1,0}}, bf16[2,2560,128]{{2,1,0}}, \
s32[2560,128]{{1,0}}, s32[8,2560]{{1,0}}{places}}}, frontend_attributes={{kernel_metadata={{}}}}
}}
"""
    module = read_module(text)
    (_, attention) = module.computations["main"].values()
    tiles = 15 if causal else 25
    assert count_kernel(attention) == 8 * tiles * products * 2 * 512 * 512 * 128
    assert scale_counts(module, 0.0, 0.0)[0] == count_kernel(attention)
