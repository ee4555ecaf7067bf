//! W7: tokens and attestation.

use super::{Code, CodeId, Level};

rows! {
    TOKENS;
    TOKEN_USED = "W7001" Error "the token was used already"
        cause: "a token admits once; if it was not you, somebody else has joined with it"
        fix: ["see who:     weft token list",
              "make a new one:   weft token create --for agent --node <node>"];
    TOKEN_EXPIRED = "W7002" Error "the token has expired"
        cause: "tokens live 15 minutes unless made with another --ttl"
        fix: ["make a new one:   weft token create --for agent --node <node>"];
    TOKEN_OTHER_NODE = "W7003" Error "the token is for another node"
        cause: "a token is bound to the node name it was made for"
        fix: ["make one for this node:   weft token create --for agent --node <node>"];
    TOKEN_UNKNOWN = "W7004" Error "the server does not know the token"
        cause: "it is of another mesh, was mistyped, or was removed after its end"
        fix: ["see the tokens:   weft token list",
              "make a new one:   weft token create --for agent --node <node>"];
    TOKEN_MALFORMED = "W7005" Error "this is not a token"
        cause: "it was cut or changed on the way; it is one line"
        fix: ["copy it again, or make a new one:   weft token create --for agent --node <node>"];
    FINGERPRINT_MISMATCH = "W7006" Error "the server's CA is not the one named in the token"
        cause: "another server answers on that address, or the mesh's roots were replaced since; nothing was sent"
        fix: ["on the server:   weft identity ca show",
              "make a new token:   weft token create --for agent --node <node>"];
    TOKEN_REVOKED = "W7007" Error "the token was revoked"
        cause: "an admin withdrew it"
        fix: ["make a new one:   weft token create --for agent --node <node>"];
    TOO_MANY_ATTEMPTS = "W7008" Error "too many attempts"
        cause: "joining, signing and changes are limited per address, node and caller, so that nobody can guess or flood"
        fix: ["wait as long as it says, then   weft agent join --token-file <file>",
              "make many changes in one:   weft apply -f <directory>"];
    NODE_KNOWN = "W7009" Error "a node of that name has joined already"
        cause: "a token for it would let somebody take its place"
        fix: ["replace it, which bans its old certificate:   weft token create --for agent --node <node> --replace"];
    TOKEN_OTHER_PURPOSE = "W7010" Error "the token is for something else"
        cause: "a token lets in an agent, a person or a server, and nobody but who it is for"
        fix: ["see the tokens:   weft token list",
              "make the right one:   weft token create --for <agent, user or server>"];
    TOKEN_IN_ARGUMENTS = "W7011" Error "a token may not be given as an argument"
        cause: "arguments are visible to every user of the host"
        fix: ["give it by file or standard input:   weft agent join --token-file -"];
    ALREADY_JOINED = "W7012" Error "this agent has joined already"
        cause: "its state directory holds an identity"
        fix: ["see it:   weft agent status", "start it:   weft agent run"];
    TOKEN_LIFETIME = "W7013" Error "the token's lifetime is out of bounds"
        cause: "a token lives at most 24 hours"
        fix: ["leave out --ttl for 15 minutes, or ask for less:   weft token create --ttl 24h --for <agent or user>"];
    TOO_MANY_TOKENS = "W7014" Error "too many tokens are open"
        cause: "unused tokens are bounded, so that they are not left lying about"
        fix: ["see them:   weft token list", "withdraw some:   weft token revoke <id>"];
    TOKEN_SCOPE = "W7015" Error "the token's namespace or services cannot be given"
        cause: "a name is not valid, or an enrollment of that name gives something else"
        fix: ["see the enrollments:   weft get workloadenrollments -A"];
}
