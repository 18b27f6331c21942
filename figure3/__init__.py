"""The talk's figure 3 again: what the same payloads cost natively and under Xen, in instructions. docs/figure3.md"""
