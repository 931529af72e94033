"""What lies between kernels."""

from bench._hlo import between


def test_bytes_between_kernels():
    text = """HloModule m
%fused { %p = f32[9,9]{1,0} parameter(0) }
ENTRY %main {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %c = (f32[4,8]{1,0}, s32[2]{0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %g = f32[4,8]{1,0} get-tuple-element(%c), index=0
  %copy.1 = bf16[4,8]{0,1} copy(%a)
  %s = (bf16[4,8]{1,0}, bf16[4,8]{0,1}, u32[]{:S(2)}) copy-start(%a)
  %d = bf16[4,8]{0,1} copy-done(%s)
  %k = (f32[4,8]{1,0}) conditional(%g, %a, %a), branch_computations={%x, %y}
  ROOT %f = f32[8]{0} fusion(%g, %copy.1), kind=kLoop, calls=%fused
}
"""
    assert between(text) == [64 + 64, 2 * 64, 8 * 4 + 128 + 64]


def test_of_what_a_fusion_gathers_the_rows_are_counted():
    text = """HloModule m

%rows (p: f32[100,8], at: s32[2,1], all: f32[2,8]) -> f32[2,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %at = s32[2,1]{1,0} parameter(1)
  %all = f32[2,8]{1,0} parameter(2)
  %some = f32[2,8]{1,0} gather(%p, %at), offset_dims={1}
  ROOT %sum = f32[2,8]{1,0} add(%some, %all)
}

ENTRY %main {
  %x = f32[100,8]{1,0} parameter(0)
  %n = s32[2,1]{1,0} parameter(1)
  %y = f32[2,8]{1,0} parameter(2)
  ROOT %f = f32[2,8]{1,0} fusion(%x, %n, %y), kind=kLoop, calls=%rows
}
"""
    assert between(text) == [64 + 64 + 8 + 64]
