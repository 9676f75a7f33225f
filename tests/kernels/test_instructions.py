"""Reading waits, matrix instructions, atomics and loads off a compiled kernel's text."""

from nerve_fast.kernels.instructions import of_amd, of_nvidia

SASS = """
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R35+0x14000], desc[UR26][R28.64], !P0 ;
.L_x_0:
        /*0030*/                   DEPBAR.LE SB0, 0x0 ;
        /*0040*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   DEPBAR.LE SB0, 0x4 ;
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT ;
        /*0070*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], R24, gsb0 ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0090*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*00a0*/              @!P0 BRA `(.L_x_1) ;
        /*00b0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*00c0*/                   DEPBAR.LE SB0, 0x0 ;
"""


def test_of_nvidia_looks_at_the_loop_with_the_products():
    found = of_nvidia(SASS, "atom.global.gpu.acq_rel.add.u32 %r1, [%rd2], 1;\nld.global.b32 %r2;")
    assert found.matrix == {"HGMMA.64x64x16.F32.BF16": 2}
    assert found.waits == (4,)
    assert found.loop == 6
    assert found.drains == 1
    assert found.atomics == {"atom.global.gpu.acq_rel.add.u32": 1}
    assert found.loads == {"16": 1, "narrower": 1}


def test_of_nvidia_without_a_loop_looks_at_everything():
    found = of_nvidia(SASS.replace("BRA", "NOP"), "")
    assert found.waits == (0, 4)
    assert found.drains == 2


def test_of_nvidia_has_the_shape_of_products_in_tensor_memory():
    # PTX ISA, tcgen05's instruction descriptor: N >> 3 from bit 17, M >> 4 from bit 24.
    descriptor = (64 >> 3) << 17 | (128 >> 4) << 24 | 0x490
    ptx = f"mov.b32 %r8, {descriptor};\n@%p2 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], "
    ptx += "%rd1, %rd2, %r8, %p1;"
    assert of_nvidia(SASS, ptx).matrix == {"tcgen05.mma kind::f16 128x64": 1}


def test_of_amd():
    isa = """
.LBB0_1:                                ; the loop
\ts_waitcnt vmcnt(3)
\tv_mfma_f32_32x32x8_bf16 v[0:15], v[2:3], v[4:5], v[0:15]
\ts_waitcnt vmcnt(0) lgkmcnt(0)
\ts_barrier
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\ts_cbranch_scc1 .LBB0_1
\tglobal_load_dword v0, v[4:5], off
\ts_barrier
\tglobal_atomic_add_u32 v0, v1, v2, s[0:1] sc0 sc1
"""
    found = of_amd(isa)
    assert found.matrix == {"v_mfma_f32_32x32x8_bf16": 1}
    assert found.waits == (0, 3)
    assert found.loop == 6
    assert found.drains == 1
    assert found.atomics == {"global_atomic_add_u32 sc0 sc1": 1}
    assert found.barriers == {"none": 1, "s_waitcnt vmcnt(0) lgkmcnt(0)": 1}
    assert found.loads == {"16": 1, "narrower": 1}
