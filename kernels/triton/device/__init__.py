"""What runs on the device, in Triton's language: the only modules that import Triton, themselves imported on use.

Every result is that of `core.formats` bit for bit: division is IEEE's (`div_rn`), products and sums are never fused
(`enable_fp_fusion=False` at launch), subnormal numbers are kept, rounding to a grid is arithmetic on fp32 numbers. NaN
stays NaN; which NaN is the device's affair.
"""
