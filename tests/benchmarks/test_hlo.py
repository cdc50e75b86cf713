"""Counts of kernels, bytes and convolutions in small programs, written by hand."""

import pytest

from benchmarks.speed.gpu_program import convolutions, measured_page, transposed_bytes
from benchmarks.speed.hlo import Array, parse

MODULE = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%half (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %s = f32[2,4]{1,0} slice(%p), slice={[0:2], [0:4]}
}

%whole (p.1: f32[8,4], q.1: bf16[4]) -> (f32[8,4], pred[8,4]) {
  %p.1 = f32[8,4]{0,1:T(8)} parameter(0)
  %q.1 = bf16[4]{0} parameter(1)
  %s.1 = f32[2,4]{1,0} slice(%p.1), slice={[0:2], [0:4]}
  %n.1 = f32[8,4]{0,1} negate(%p.1)
  %c.1 = pred[8,4]{0,1} compare(%n.1, %p.1), direction=LT
  ROOT %t.1 = (f32[8,4]{0,1}, pred[8,4]{0,1}) tuple(%n.1, /*index=1*/%c.1)
}

%in_place (p.2: f32[8,4], q.2: f32[1,4], i.2: s32[]) -> f32[8,4] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  %q.2 = f32[1,4]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %u.2 = f32[8,4]{1,0} dynamic-update-slice(%p.2, %q.2, %i.2, %i.2)
  ROOT %b.2 = f32[8,4]{1,0} bitcast(%u.2)
}

%body (v: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %v = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%v), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%v), index=1
  %c = f32[8,4]{1,0} copy(%x)
  %k = f32[8,4]{1,0} call(%c), to_apply=%inner
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %k)
}

%inner (y: f32[8,4]) -> f32[8,4] {
  %y = f32[8,4]{1,0} parameter(0)
  ROOT %d = f32[8,4]{1,0} dot(%y, %y), metadata={op_name="a(b)"}
}

%turned (p.3: f32[8,4]) -> f32[4,8] {
  %p.3 = f32[8,4]{1,0} parameter(0)
  %n.3 = f32[8,4]{1,0} negate(%p.3)
  ROOT %t.3 = f32[4,8]{1,0} transpose(%n.3), dimensions={1,0}
}

ENTRY %main (a: f32[8,4], b: f32[4,8]) -> f32[8,4] {
"""


def kernels(*entry):
    lines = ("%a = f32[8,4]{1,0} parameter(0)", "%b = f32[4,8]{1,0} parameter(1)")
    return parse(MODULE + "".join(f"  {x}\n" for x in lines + entry) + "}\n").kernels()


def bytes_of(*entry):
    (kernel,) = kernels(*entry)
    return kernel.bytes


def test_kernel_reads_its_operands_and_writes_its_outputs():
    assert bytes_of("ROOT %r = f32[8,8]{1,0} dot(%a, %b)") == 4 * (32 + 32 + 64)


def test_operand_used_twice_is_read_once():
    assert bytes_of("ROOT %r = f32[8,8]{1,0} dot(%a, %a)") == 4 * (32 + 64)


def test_fusion_reads_a_slice_where_it_uses_no_more():
    fusion = "ROOT %r = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%half"
    assert bytes_of(fusion) == 4 * (8 + 8)


def test_fusion_reads_an_operand_that_it_slices_and_uses_whole():
    entry = (
        "%c = bf16[4]{0} constant({...})",
        "ROOT %r = (f32[8,4]{0,1}, pred[8,4]{0,1}) fusion(%a, %c), calls=%whole",
    )
    assert bytes_of(*entry) == 4 * 32 + 2 * 4 + 4 * 32 + 32


def test_update_in_place_moves_the_slice_alone():
    entry = (
        "%u = f32[1,4]{1,0} parameter(2)",
        "%i = s32[] parameter(3)",
        "ROOT %r = f32[8,4]{1,0} fusion(%a, %u, %i), calls=%in_place, kind=kLoop",
    )
    assert bytes_of(*entry) == 4 * 4 + 4 + 4 * 4


def test_asynchronous_kernel_counts_once():
    done = "ROOT %r = f32[8,4]{1,0} all-reduce-done(%s)"
    start = "%s = ((f32[8,4]{1,0}), f32[8,4]{1,0}) all-reduce-start(%a), to_apply=%add"
    assert bytes_of(start, done) == 2 * 4 * 32


def test_kernels_of_a_loop_count_in_each_iteration():
    loop = (
        "%w = (s32[], f32[8,4]{1,0}) while(%t), condition=%until, body=%body,"
        ' backend_config={"known_trip_count":{"n":"16"},"x":[]}'
    )
    found = kernels(loop, "ROOT %r = f32[4,8]{1,0} copy(%b)")
    assert [(k.instruction.name, k.times) for k in found] == [
        ("c", 16),
        ("d", 16),
        ("r", 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%w = s32[] while(%t), condition=%until, body=%body", "w has no known trip"),
        ("%c = s32[] conditional(%p, %a, %b), true_computation=%x", "c is a branch"),
    ],
)
def test_what_runs_an_unknown_number_of_times_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        kernels(line)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule jit_f\n")


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f32", 24), ("bf16", 12), ("pred", 6), ("s4", 3), ("f8e4m3fn", 6), ("c64", 48)],
)
def test_size_of_a_dtype(dtype, size):
    assert Array(dtype, (2, 3), (1, 0)).bytes == size


def test_layout_and_name_are_read():
    (kernel,) = kernels("ROOT %copy.1-x_2 = u8[8,4]{0,1:T(8,128)S(1)} copy(%a)")
    assert kernel.instruction.name == "copy.1-x_2"
    assert kernel.instruction.outputs == (Array("u8", (8, 4), (0, 1)),)
    assert [operand.name for operand in kernel.operands] == ["a"]


def test_convolutions_are_counted_by_dtype_and_layout():
    target = 'custom_call_target="__cudnn$convForward"'
    entry = (
        "%x = bf16[8,4]{1,0} parameter(2)",
        f"%c = (bf16[8,4]{{1,0}}, u8[0]) custom-call(%x, %x), {target},"
        " dim_labels=b01f_o01i->b01f, window={size=3x3}",
        f"%d = (bf16[8,4]{{1,0}}, u8[0]) custom-call(%x, %b, %a), {target},"
        " dim_labels=b01f_o01i->b01f",
        "%e = f32[8,4]{1,0} convolution(%a, %b), dim_labels=bf01_oi01->bf01",
        "ROOT %f = f32[8,4]{1,0} dot(%a, %b)",
    )
    counts = {"bf16 NHWC": 1, "bf16/f32 NHWC": 1, "f32 NCHW": 1}
    assert convolutions(kernels(*entry)) == counts


def test_kernels_that_transpose_or_copy_an_activation_count_whole():
    entry = (
        "%c = f32[8,4]{1,0} copy(%a)",
        "%d = f32[4,8]{1,0} fusion(%a), kind=kInput, calls=%turned",
        "%e = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%half",
        "ROOT %r = f32[8,8]{1,0} dot(%a, %b)",
    )
    found = kernels(*entry)
    assert transposed_bytes(found, images=8, parameter_sizes={64}) == 2 * 2 * 4 * 32
    assert transposed_bytes(found, images=8, parameter_sizes={32}) == 0
    assert transposed_bytes(found, images=5, parameter_sizes={64}) == 0


def test_measured_steps_stand_beside_the_compiled_ones():
    sgd = {"median_seconds": 0.006, "passes_by_xla": 6.0}
    steps = {"copy": {"median_seconds": 0.002}, "optax.sgd": sgd, "other": sgd}
    result = {"optimizers": steps}
    page = measured_page({"device": "G", "results": {"resnet50 float32": result}})
    assert "ResNet-50, float32, measured on G" in page
    # Five passes take five halves of a copy, which reads and writes.
    assert "| optax.sgd | 161 | 5.00 | 6.00 | 5.000 | 6.000 |" in page
    assert "other" not in page
    assert measured_page({"device": "G", "results": {}}) == ""
