"""The exit codes of all commands."""

EQUIVALENT, DIVERGED, UNUSABLE, INTERNAL, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130
VERDICT_CODES = {"equivalent": EQUIVALENT, "diverged": DIVERGED, "inconclusive": INCONCLUSIVE}
GRAVEST_FIRST = (INTERNAL, UNUSABLE, DIVERGED, INCONCLUSIVE, EQUIVALENT)

MEANINGS = {
    EQUIVALENT: "equivalent, or as the spec's `expect` says",
    DIVERGED: "diverged, or not as `expect` says",
    UNUSABLE: "bad usage, spec, data or code of your own; the message says where",
    INTERNAL: "internal error",
    INCONCLUSIVE: "inconclusive: neither a pass nor a divergence",
    INTERRUPTED: "interrupted",
}

INTERNAL_ERROR = (
    "internal error, and no verdict; please report it to the maintainers, with the lines above"
)
