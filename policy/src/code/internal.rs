//! W9: faults of the mesh itself.

use super::{Code, CodeId, Level};

rows! {
    INTERNAL_FAULTS;
    INTERNAL = "W9001" Error "an internal fault"
        cause: "a part of the mesh failed in a way that it should not; please report it with the log around it"
        fix: ["see what still runs:   weft status", "name the build in the report:   weft version"];
    OUTPUT_FAILED = "W9002" Error "the output could not be written"
        cause: "the terminal, pipe or file at the other end is closed or full"
        fix: ["write it elsewhere, for instance:   weft status -o json > <file>"];
    TASK_FAILED = "W9003" Error "a part of the process ended unexpectedly"
        cause: "it panicked; the process ends rather than work by halves"
        fix: ["start it again:   weft up", "name the build in the report:   weft version"];
    UNEXPECTED_ANSWER = "W9004" Error "the other side answered what it should not"
        cause: "a fault in one of the two versions"
        fix: ["compare versions:   weft version"];
    ENTROPY = "W9005" Error "the system gives no random numbers"
        cause: "the kernel's generator is not usable; no key is made without it"
        fix: ["check the host, then   weft status"];
}
