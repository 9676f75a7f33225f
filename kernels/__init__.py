"""Triton sources and the host code that starts them, installed as ``nerve_fast.kernels``.

Every kernel uses the same vocabulary:

- A prefix says what a name holds: ``i_`` an index, ``o_`` offsets, ``m_`` a mask, ``p_`` pointers,
  ``b_`` the values of a block.
- ``BM`` and ``BN`` are the rows and the columns of a tile, ``BD`` the channels of one head in a
  block, ``BC`` the channels of packed heads in a block, ``BK`` the labels of a tile.
- A comment such as ``# [BM, BN]`` gives the shape of the block below it.
- Program ids and strides are 64 bits wide wherever they multiply.
- ``(batch, N, K)`` after a pointer's name in a docstring is the shape of what it points to, and
  *Programs* is the size of the launch grid.
"""
