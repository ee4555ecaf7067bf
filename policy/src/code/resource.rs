//! W4: resources and their validation.

use super::{Code, CodeId, Level};

rows! {
    RESOURCES;
    USAGE = "W4001" Error "the arguments do not fit together"
        cause: "an argument is missing, given twice, or excludes another"
        fix: ["see what it takes:   weft help <command>"];
    MALFORMED = "W4002" Error "the file is neither YAML nor JSON"
        cause: "a wrong indent, a missing bracket or quote near the line and column named"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    UNKNOWN_KIND = "W4003" Error "unknown kind"
        cause: "the kind is misspelt or not served by this version"
        fix: ["see kinds by example:   weft get services -o yaml", "see the version:   weft version"];
    UNKNOWN_FIELD = "W4004" Error "unknown field"
        cause: "the field is misspelt, stands at the wrong depth, or belongs to a newer version"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    MISSING_FIELD = "W4005" Error "a required field is missing"
        cause: "the object does not say something that has no safe default"
        fix: ["add it, then   weft apply -f <file> --dry-run=client"];
    EMPTY_LIST = "W4006" Error "a list may not be empty"
        cause: "an empty list could be read as \"none\" or as \"any\"; leave the field out for no constraint"
        fix: ["fill it or leave it out, then   weft apply -f <file> --dry-run=client"];
    WRONG_TYPE = "W4007" Error "a value has the wrong type"
        cause: "a text where a number is needed, a list where an object is needed, or the like"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    DUPLICATE_KEY = "W4008" Error "a key or name stands twice"
        cause: "the same key in one object, or two rules, ports or workloads of one name"
        fix: ["keep one, then   weft apply -f <file> --dry-run=client"];
    NOT_SERVED = "W4009" Error "this field is not served yet"
        cause: "it is part of the schema, but this version could not honour it; it is never ignored"
        fix: ["leave it out, then   weft apply -f <file> --dry-run=client",
              "see the version:   weft version"];
    IMMUTABLE = "W4010" Error "this field cannot be changed"
        cause: "other objects, certificates or tunnels depend on it for life"
        fix: ["see the present value:   weft get <kind>/<name> -o yaml"];
    OVER_LIMIT = "W4012" Error "a limit is exceeded"
        cause: "too many entries, too long a text, or too large an object"
        fix: ["split it, then   weft apply -f <file> --dry-run=client"];
    CONTRADICTION = "W4013" Error "two objects contradict each other"
        cause: "for instance two TrafficPolicies for one service, or two routes for one port"
        fix: ["see the other one:   weft get <kind> -n <namespace> -o yaml",
              "keep one:   weft delete <kind>/<name>"];
    BAD_NAME = "W4014" Error "not a valid name"
        cause: "names are 1 to 63 lower case letters, digits and inner hyphens"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    BAD_PATTERN = "W4015" Error "not a valid identity pattern"
        cause: "the trust domain must be literal, * stands for one whole segment, ** only for the end of the path"
        fix: ["see identities:   weft get workloads -A -o wide",
              "then   weft apply -f <file> --dry-run=client"];
    BAD_VALUE = "W4016" Error "a value is out of range or not one of the allowed words"
        cause: "the field takes only the values named in the message"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    BAD_API_VERSION = "W4017" Error "the apiVersion does not belong to the kind"
        cause: "a version that this build does not know, or the group of another kind"
        fix: ["see the right one:   weft get <kind> -o yaml"];
    NOTHING_TO_DO = "W4018" Error "there is no object in the input"
        cause: "the file or directory is empty, or holds only comments"
        fix: ["check the path, then   weft apply -f <file> --dry-run=client"];
    OTHER_NAMESPACE = "W4019" Error "the object reaches into another namespace"
        cause: "policies, routes and enrollments speak only for their own namespace"
        fix: ["move it, then   weft apply -f <file> -n <namespace>"];
    BAD_ADDRESS = "W4020" Error "not an address, port or network"
        cause: "needed is ip, ip:port, host:port or a network such as 10.0.0.0/8"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    NOT_FOUND = "W4021" Error "no object of that name"
        cause: "it does not exist, or lives in another namespace"
        fix: ["see what exists:   weft get <kind> -A"];
    SAME_OBJECT_TWICE = "W4022" Error "one object stands twice in the input"
        cause: "two documents have the same kind, namespace and name"
        fix: ["keep one, then   weft apply -f <file> --dry-run=client"];
    IDENTITY_OUT_OF_SCOPE = "W4023" Error "an enrollment gives an identity outside its namespace"
        cause: "its patterns must lie under /ns/<its own namespace>/; /node, /server and /user are never given"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    BAD_DURATION = "W4024" Error "not a duration"
        cause: "needed is a number with a unit, such as 500ms, 10s, 5m or 1h"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    UNREADABLE_RECORD = "W4025" Error "a stored object cannot be read"
        cause: "it was written by a newer version, or is damaged; it is set aside, the rest goes on"
        fix: ["see the version:   weft version", "write it again:   weft apply -f <file>"];
    STILL_REFERRED_TO = "W4026" Warning "other objects still refer to this one"
        cause: "they had it for a target and have none now; what they say takes effect when it comes back"
        fix: ["see the other one:   weft describe <kind>/<name>", "delete it too:       weft delete <kind>/<name>"];
    NETWORK_ALONE = "W4027" Error "networks stand only beside an authenticated source"
        cause: "an address is no proof of who is calling"
        fix: ["name a source, then   weft apply -f <file> --dry-run=client"];
    BROAD_ALLOW = "W4028" Warning "the policy allows a whole trust domain"
        cause: "a ** over every path, or source Any, with no port or network beside it"
        fix: ["see what it opens:   weft describe authorizationpolicy/<policy>"];
    NULL_VALUE = "W4029" Error "a value is empty"
        cause: "the key is there, its value is null; leave the key out for the default"
        fix: ["correct it, then   weft apply -f <file> --dry-run=client"];
    TOO_DEEP = "W4030" Error "the file is nested too deeply or expands too far"
        cause: "more levels, anchors or aliases than an object can need"
        fix: ["flatten it, then   weft apply -f <file> --dry-run=client"];
    WARNED_REFERENCE = "W4031" Warning "the object refers to something that does not exist yet"
        cause: "it takes effect when the other object comes"
        fix: ["see what exists:   weft get <kind> -A"];
}
