//! W5: configuration, ports and files of a host.

use super::{Code, CodeId, Level};

rows! {
    CONFIG;
    CONFIG_MALFORMED = "W5001" Error "the configuration file is not valid YAML"
        cause: "a wrong indent, a missing bracket or quote near the line and column named"
        fix: ["correct it, then start again:   weft agent run, or   weft server run"];
    CONFIG_UNKNOWN_KEY = "W5002" Error "unknown key in the configuration"
        cause: "the key is misspelt, stands at the wrong depth, or belongs to a newer version"
        fix: ["correct it; the nearest known key is named", "see the version:   weft version"];
    FILE_UNUSABLE = "W5003" Error "a file or directory cannot be used"
        cause: "it does not exist, or this user may not read or write it"
        fix: ["check path and permissions, then   weft status"];
    CONFIG_BAD_VALUE = "W5004" Error "a value of the configuration cannot be used"
        cause: "it is out of range, of the wrong type, or contradicts another"
        fix: ["correct it, then start again:   weft agent run, or   weft server run"];
    CONFIG_MISSING = "W5005" Error "a required setting is missing"
        cause: "neither flag, environment, file nor default gives it"
        fix: ["start with every default:   weft up", "see flags:   weft man"];
    PORT_IN_USE = "W5006" Error "the port is taken"
        cause: "another program, or another agent or server, listens there already"
        fix: ["is it ours?   weft status",
              "stop ours:   weft down", "or choose another port in the configuration"];
    PORT_NOT_PERMITTED = "W5007" Error "this user may not listen on that port"
        cause: "ports below 1024 need a privilege on this host"
        fix: ["choose a port from 1024 up, then   weft up"];
    KEY_PERMISSIONS = "W5008" Error "a key file can be read or owned by others"
        cause: "keys must belong to the process's user and be mode 0600; others may have copied this one"
        fix: ["chmod 600 <file>; if others had access, make a new one:   weft agent join --token-file <file>"];
    STATE_DIRECTORY = "W5009" Error "the state directory cannot be made or used"
        cause: "its parent does not exist, is read-only, or the directory belongs to another user or is open to others"
        fix: ["choose another:   weft up --state-dir <directory>",
              "or: chmod 700 <directory>, then   weft up"];
    STATE_IN_USE = "W5010" Error "another process uses the state directory"
        cause: "an agent or server already runs with it; two would take each other's identity"
        fix: ["is it ours?   weft status", "stop it:   weft down"];
    LOOPBACK_ADVERTISED = "W5011" Error "others would be told a loopback address"
        cause: "the listener is reachable from outside but only 127.0.0.1 or ::1 is advertised"
        fix: ["name an address others can reach:   weft up --listen <address> --advertise <address>"];
    SMALL_UDP_BUFFERS = "W5012" Warning "the kernel's UDP buffers are small"
        cause: "net.core.rmem_max or wmem_max cuts them below limits.tunnels.socketBuffer; fast tunnels lose packets"
        fix: ["sysctl -w net.core.rmem_max=7500000 net.core.wmem_max=7500000, then   weft agent run"];
    FILE_LIMIT = "W5013" Error "too many open files"
        cause: "the limit of this process is reached; new connections wait or fail"
        fix: ["raise it: ulimit -n 65536, then   weft down, and   weft up"];
    SOCKET_UNSAFE = "W5014" Error "a control socket belongs to somebody else"
        cause: "another user made it or its directory; using it would hand over what it is for"
        fix: ["remove it if you know it, then   weft up"];
    STATE_DAMAGED = "W5015" Error "a file of the state directory cannot be read"
        cause: "it is cut short, from a newer version, or from another agent"
        fix: ["fetch it anew:   weft agent join --token-file <file>", "see the version:   weft version"];
    CANNOT_START = "W5016" Error "the background process did not start"
        cause: "its log in the state directory says why"
        fix: ["run it in the foreground:   weft agent run, or   weft server run"];
    START_TIMEOUT = "W5017" Error "the background process was not ready in time"
        cause: "it runs, but does not yet answer; its log in the state directory says what it waits for"
        fix: ["see its state:   weft status", "stop it:   weft down"];
    WRITE_FAILED = "W5018" Error "a file could not be written"
        cause: "the disk is full or read-only; what was there before is unchanged"
        fix: ["make room, then   weft status"];
    ADDRESS_NOT_LOCAL = "W5019" Error "the address does not belong to this host"
        cause: "a listener can only be opened on an address of one of its interfaces"
        fix: ["listen on all and advertise it instead:   weft up --listen 0.0.0.0 --advertise <address>"];
    COMMAND_NOT_FOUND = "W5020" Error "the program cannot be started"
        cause: "it does not exist, is not executable, or its interpreter is missing"
        fix: ["check the command after --:   weft run --service <service> -- <command>"];
    NOT_SUPPORTED_HERE = "W5021" Error "this host cannot do that"
        cause: "the kernel lacks a facility that the agent needs, or a sandbox hides it"
        fix: ["see what is missing:   weft agent status"];
    OTHER_TRUST_DOMAIN = "W5022" Error "the state belongs to another trust domain"
        cause: "the trust domain is fixed at the first start; the configuration names another"
        fix: ["see the one in use:   weft identity ca show",
              "or start afresh:   weft up --state-dir <new directory>"];
    NOT_JOINED = "W5023" Error "this agent has not joined a mesh"
        cause: "it has neither an identity nor a token"
        fix: ["on the server:   weft token create --for agent --node <node>",
              "here:   weft agent join --token-file <file>"];
    NOT_LOOPBACK = "W5024" Error "this listener may only be on loopback"
        cause: "it speaks without encryption: proxy, upstream, admin and metrics listeners stay on the host"
        fix: ["use 127.0.0.1 or ::1, then   weft agent run"];
}
