//! W1: something cannot be reached.

use super::{Code, CodeId, Level};

rows! {
    REACH;
    SERVER_UNREACHABLE = "W1001" Error "no server answers on the control port"
        cause: "the server is not running, listens elsewhere, or TCP 7444 is blocked between here and there"
        fix: ["on the server's host:   weft status", "start it there:         weft up --listen 0.0.0.0",
              "on one host alone:      weft up"];
    AGENT_NOT_RUNNING = "W1002" Error "no agent runs on this host"
        cause: "the agent's socket does not exist or nobody answers on it"
        fix: ["start it:    weft up", "or, joined:  weft agent run"];
    TUNNEL_BLOCKED = "W1003" Error "a tunnel cannot be opened: no answer over UDP"
        cause: "UDP to the other agent's tunnel port (7443 unless configured) is dropped on the way, or its host is down"
        fix: ["open UDP 7443 to the other host, then try again:   weft call <service>",
              "see what that agent advertises:                    weft status"];
    TUNNEL_REFUSED = "W1004" Error "the other agent closed the tunnel while it was being opened"
        cause: "it is overloaded, shutting down, or does not speak this version of the tunnel protocol"
        fix: ["compare versions and states:   weft status",
              "on the other host:             weft agent status"];
    NO_ENDPOINT = "W1005" Error "the service has no endpoint"
        cause: "no program is registered behind the service, its weight is 0, or its identity may not serve it"
        fix: ["start one:            weft run --service <service> --port <port> -- <command>",
              "see what is there:    weft describe service/<service>"];
    ALL_EJECTED = "W1006" Error "every endpoint of the service is ejected"
        cause: "each has failed several connections in a row, and outlierDetection.ejection.maxPercent is 100"
        fix: ["see the endpoints:   weft describe service/<service>",
              "keep some in use: set maxPercent below 100 and   weft apply -f <file>"];
    BREAKER_OPEN = "W1007" Error "the circuit breaker of the service is open"
        cause: "this agent has as many connections open or opening to the service as its TrafficPolicy allows"
        fix: ["see the limits:   weft describe service/<service>", "raise them and    weft apply -f <file>"];
    PROGRAM_REFUSED = "W1008" Error "the program behind the service refuses the connection"
        cause: "nothing listens on the address that the workload declares, or it is still starting"
        fix: ["see where it is expected:   weft describe service/<service>",
              "start it:                   weft run --service <service> --port <port> -- <command>"];
    PROGRAM_TIMEOUT = "W1009" Error "the program behind the service does not accept the connection in time"
        cause: "its accept queue is full, or the declared address is filtered"
        fix: ["see where it is expected:   weft describe service/<service>"];
    CONNECT_TIMEOUT = "W1010" Error "the connection was not made within the connect timeout"
        cause: "endpoints answer too slowly; all attempts together share timeouts.connect (5 s by default)"
        fix: ["see endpoints and timeout:   weft describe service/<service>",
              "try it:   weft call <service>"];
    UNKNOWN_SERVICE = "W1011" Error "no service of that name"
        cause: "the name or its namespace is misspelt, or the service was never declared or registered"
        fix: ["see what exists:   weft get services -A",
              "start one:         weft run --service <service> --port <port> -- <command>"];
    UNKNOWN_PORT = "W1012" Error "the service has no such port"
        cause: "the port is not declared, or none was named and the service has several and none called http"
        fix: ["see its ports:   weft get service/<service> -o yaml"];
    EGRESS_DENIED = "W1013" Error "the destination is outside the mesh and egress is denied"
        cause: "the mesh or the caller's namespace has egress: Deny"
        fix: ["see the mode:   weft get mesh/mesh -o yaml",
              "allow it: set spec.egress to Log or Allow on the Namespace, then   weft apply -f <file>"];
    ROUTE_BACKEND_MISSING = "W1014" Error "a route sends the connection to a backend that does not exist"
        cause: "the backend's service, or its port, was deleted or never declared"
        fix: ["see the route:   weft get tcproutes -n <namespace> -o yaml",
              "see services:    weft get services -A"];
    ROUTE_WITHOUT_WEIGHT = "W1015" Error "every backend of the route has weight 0"
        cause: "weights of a TCPRoute are relative; when all are 0 no backend can be chosen"
        fix: ["see the route:   weft get tcproutes -n <namespace> -o yaml",
              "give one a weight and   weft apply -f <file>"];
    NAME_NOT_RESOLVED = "W1016" Error "a host name cannot be resolved"
        cause: "an advertised or configured name is unknown to this host's resolver"
        fix: ["see what is advertised:   weft status",
              "advertise an address:     weft up --advertise <address>"];
    IDLE_TIMEOUT = "W1017" Error "the connection was closed because nothing moved in either direction"
        cause: "no byte for timeouts.idle (1 h by default)"
        fix: ["see the timeout:   weft describe service/<service>",
              "raise it and       weft apply -f <file>"];
    STALLED = "W1018" Error "the connection was closed because its reader stalled"
        cause: "flows of one identity held more unread bytes than its receive budget; the longest-stalled one is closed"
        fix: ["see who reads slowly:   weft agent status"];
    OVERLOADED = "W1019" Error "the other agent takes no more connections now"
        cause: "it is at a limit of flows, tunnels or memory that protects its other callers"
        fix: ["see its load:            weft agent status",
              "add an endpoint there:   weft run --service <service> --port <port> -- <command>"];
    DRAINING = "W1020" Error "the other agent is shutting down"
        cause: "it drains: it finishes what runs and takes nothing new"
        fix: ["see which agents are up:   weft status"];
    EGRESS_UNREACHABLE = "W1021" Error "the destination outside the mesh cannot be connected"
        cause: "it refuses, does not answer, or its name does not resolve; the mesh only passed the connection on"
        fix: ["if a service was meant, see what exists:   weft get services -A"];
    TUNNEL_LOST = "W1022" Error "the tunnel broke while the connection was open"
        cause: "the other agent stopped or the network between them failed; bytes in flight may be lost"
        fix: ["see which agents are up:   weft status", "try again:                 weft call <service>"];
    OLDER_BOOT = "W1023" Error "the tunnel belonged to an earlier run of the other agent"
        cause: "that agent has restarted; its old tunnels are closed and new ones are opened on the next call"
        fix: ["try again:   weft call <service>"];
    UNKNOWN_ENDPOINT = "W1024" Error "the other agent does not know the endpoint"
        cause: "its program has ended or moved, and this agent has not heard of it yet"
        fix: ["see the endpoints:   weft describe service/<service>"];
    PROGRAM_RESET = "W1025" Error "the program behind the service reset the connection"
        cause: "it closed without finishing: it crashed, or refused what it was sent"
        fix: ["look at the program's own log, then   weft call <service>"];
    NO_USABLE_ADDRESS = "W1026" Error "the endpoint advertises no address that this host can use"
        cause: "only loopback addresses of another host, or only an address family that is off here"
        fix: ["on that host:   weft up --listen <address> --advertise <address>",
              "see addresses:  weft status"];
    TOO_MANY_TUNNELS = "W1027" Error "this agent has as many tunnels open as it may"
        cause: "its workloads call more destinations at once than limits.tunnels allows"
        fix: ["see them:   weft agent status"];
    PEER_CLOSED = "W1028" Error "the other side closed the connection without a reason"
        cause: "a version that sends no code, or the caller itself went away"
        fix: ["compare versions:   weft status"];
}
