//! W8: what a program or peer sent cannot be understood.

use super::{Code, CodeId, Level};

rows! {
    REQUESTS;
    BAD_PROXY_REQUEST = "W8001" Error "the first bytes on the proxy port are no proxy request"
        cause: "the port takes SOCKS5, CONNECT, and HTTP/1.1 requests; TLS or another protocol was sent"
        fix: ["reach the service by a listener of its own:   weft run --service <caller> --upstream <service>=<port> -- <command>"];
    BAD_CONNECT = "W8002" Error "the CONNECT request is malformed"
        cause: "needed is CONNECT host:port HTTP/1.1"
        fix: ["compare with:   weft call <service>"];
    BAD_SOCKS = "W8003" Error "the SOCKS request is malformed"
        cause: "only SOCKS version 5 is spoken, without fragments and with whole messages"
        fix: ["compare with:   weft call <service>"];
    SOCKS_COMMAND = "W8004" Error "this SOCKS command is not served"
        cause: "only CONNECT is; BIND and UDP ASSOCIATE are not"
        fix: ["compare with:   weft call <service>"];
    NO_HOST = "W8005" Error "the request names no host"
        cause: "neither its target nor a Host header says which service is meant"
        fix: ["name it:   weft call <service>"];
    HEAD_TOO_LARGE = "W8006" Error "the head of the request is too large"
        cause: "more than 16 KiB, 100 headers, or a target of 8 KiB"
        fix: ["compare with:   weft call <service>"];
    HEAD_TIMEOUT = "W8007" Error "the head of the request did not come in time"
        cause: "the program connected and sent nothing, or only a part, for 10 s"
        fix: ["for protocols where the server speaks first use a listener:   weft run --service <caller> --upstream <service>=<port> -- <command>"];
    BAD_HOST = "W8008" Error "the host name cannot be a service or an outside destination"
        cause: "a mesh suffix with too many labels, or characters no host name has"
        fix: ["see services:   weft get services -A"];
    AMBIGUOUS_REQUEST = "W8009" Error "the request can be read in two ways"
        cause: "two lengths, two hosts, or whitespace where another server would see the end of a header"
        fix: ["compare with:   weft call <service>"];
    BAD_STREAM_HEADER = "W8010" Error "the other agent sent a stream header that cannot be read"
        cause: "it is damaged, too long, or of an unknown version"
        fix: ["compare versions:   weft status"];
    REQUEST_NOT_SERVED = "W8011" Error "this kind of request is not served"
        cause: "the feature belongs to a later version, such as protocol upgrades on the proxy port"
        fix: ["see the version:   weft version",
              "use a listener:    weft run --service <caller> --upstream <service>=<port> -- <command>"];
    TOO_MANY_CONNECTIONS = "W8012" Error "the listener has as many connections open as it may"
        cause: "one program may not use up the agent"
        fix: ["see them:   weft agent status"];
    BAD_PROXY_CREDENTIAL = "W8013" Error "the proxy credential cannot be read"
        cause: "needed is Proxy-Authorization: Basic, or SOCKS5 user name and password"
        fix: ["use what weft run sets for its child:   weft run --service <caller> -- <command>"];
    NOT_HTTP = "W8014" Error "the service did not answer in HTTP"
        cause: "another protocol is spoken on that port"
        fix: ["see its ports:   weft get service/<service> -o yaml"];
    PROTOCOL_ERROR = "W8015" Error "the other agent broke the tunnel protocol"
        cause: "a version that speaks otherwise, or somebody who is not an agent"
        fix: ["compare versions:   weft status"];
}
