"""lrms_vm: an ordinary batch job asks for a signed virtual machine image and runs inside that guest."""

__version__ = "0.1.0"
