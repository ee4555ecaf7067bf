//! W3: identities and certificates.

use super::{Code, CodeId, Level};

rows! {
    IDENTITY;
    UNKNOWN_TRUST_DOMAIN = "W3001" Error "the certificate is of an unknown trust domain"
        cause: "no bundle for it is known here; it comes from another mesh or a stranger"
        fix: ["see the own trust domain:   weft identity ca show",
              "see the own certificate:    weft identity svid show"];
    PEER_EXPIRED = "W3002" Error "the other side's certificate has expired"
        cause: "its agent could not renew it in time, or one of the clocks is wrong; there is no grace"
        fix: ["on that host:   weft agent status", "compare clocks, then   weft identity svid show"];
    PEER_NOT_YET_VALID = "W3003" Error "the other side's certificate is not valid yet"
        cause: "the clock of this host, or of the one that issued it, is wrong"
        fix: ["compare clocks, then   weft identity svid show"];
    ISSUANCE_REFUSED = "W3004" Error "the server refuses to issue this identity"
        cause: "no WorkloadEnrollment gives it to this node, or the node is banned"
        fix: ["see the enrollments:   weft get workloadenrollments -A",
              "for a node to come:    weft token create --for agent --node <node> --namespace <namespace> --service <service>",
              "for one that joined:   weft apply -f <file with one more WorkloadEnrollment>"];
    WRONG_PEER = "W3005" Error "the other side is somebody else than expected"
        cause: "an old address now belongs to another workload, or somebody is in between; nothing was sent"
        fix: ["see the endpoints:   weft describe service/<service>"];
    NO_SVID_YET = "W3006" Error "the workload has no certificate yet"
        cause: "it has just started, or the server has not answered; nobody may act for it before"
        fix: ["see what it waits for:   weft agent status", "see its certificate:   weft identity svid show"];
    CA_EXPIRES_SOON = "W3007" Warning "the CA certificate expires soon"
        cause: "less than a sixth of the issuer's life is left and no renewal is under way"
        fix: ["see it:           weft identity ca show", "is the server up and able to write?   weft status"];
    NO_CERTIFICATE = "W3008" Error "the other side presented no certificate"
        cause: "it is not in the mesh, or its certificate is not of the expected trust domain and was held back"
        fix: ["run it in the mesh:   weft run --service <service> -- <command>"];
    BAD_CERTIFICATE = "W3009" Error "the certificate breaks the X.509-SVID profile"
        cause: "not exactly one SPIFFE URI, a wrong key usage, a CA as a leaf, or an unreadable field"
        fix: ["see a good one:   weft identity svid show", "versions:   weft status"];
    UNTRUSTED_CHAIN = "W3010" Error "the certificate does not lead to a root of its trust domain"
        cause: "it was signed by another CA, or its root was removed from the bundle"
        fix: ["see the roots:   weft identity ca show",
              "join again:      weft agent join --token-file <file>"];
    OWN_SVID_EXPIRED = "W3011" Error "the workload's own certificate has expired"
        cause: "the server could not be reached, or refused, for more than half of its life"
        fix: ["see why:   weft agent status", "is the server up?   weft status"];
    RENEWAL_FAILING = "W3012" Warning "a certificate is not being renewed"
        cause: "requests to the server fail; the present one stays in use until it expires"
        fix: ["see why:   weft agent status", "is the server up?   weft status"];
    CLOCK_WENT_BACK = "W3013" Error "the clock went back, so the CA does not sign"
        cause: "the host's time lies before that of the last certificate it issued"
        fix: ["set the clock, then   weft status"];
    KEY_MISMATCH = "W3014" Error "a certificate and its key do not belong together"
        cause: "one of the two files was replaced or restored from another time"
        fix: ["let the agent fetch a new pair:   weft agent join --token-file <file>"];
    CA_EXPIRED = "W3015" Error "the CA certificate has expired"
        cause: "the server did not run while it should have renewed it"
        fix: ["see it:   weft identity ca show", "start the server, which renews it:   weft up"];
    BAD_BUNDLE = "W3016" Error "a trust bundle cannot be used"
        cause: "it is larger than 1 MiB, holds more than 64 keys, goes back in sequence, or is not a bundle"
        fix: ["see the one in use:   weft identity ca show"];
    IDENTITY_BANNED = "W3017" Error "the node or identity is banned"
        cause: "an admin banned the node, or another node of its name replaced it, or the person's role is gone"
        fix: ["see what is denied, and why:   weft identity svid denied",
              "lift the ban:                  weft agent unban <node>",
              "or join again with a new token:   weft token create --for agent --node <node> --replace"];
    AUTHORITY_REVOKED = "W3018" Error "the root that signed the certificate is no longer trusted"
        cause: "the bundle changed while the connection was open"
        fix: ["see the roots:   weft identity ca show",
              "is a new certificate on its way?   weft agent status"];
    HANDSHAKE_FAILED = "W3019" Error "the TLS handshake failed"
        cause: "the other side offers no common version or cipher, or broke it off"
        fix: ["compare versions:   weft status"];
    SHORT_LIFETIME = "W3021" Warning "certificates live less than 5 minutes"
        cause: "identity.allowShortLifetimes is set; an outage of the server is felt within that time"
        fix: ["see the lifetime:   weft identity ca show"];
    BAD_SPIFFE_ID = "W3022" Error "the text is not a SPIFFE ID"
        cause: "it must be spiffe://<trust domain>/<path>, without upper case in the domain and without empty segments"
        fix: ["see examples:   weft identity svid show"];
    FOREIGN_IDENTITY = "W3023" Error "the identity is not one that this server may issue"
        cause: "another trust domain, or a /node, /server or /user path asked for as a workload"
        fix: ["see the trust domain:   weft identity ca show"];
    BAD_SIGNING_REQUEST = "W3024" Error "the certificate request cannot be read or does not prove its key"
        cause: "a damaged message, an unknown key type, or a client that is not Weft's"
        fix: ["compare versions:   weft status"];
    LIFETIME_REFUSED = "W3025" Error "the lifetime asked for is out of bounds"
        cause: "leaves live from 5 min to 7 days, and never beyond their issuer"
        fix: ["see the issuer:   weft identity ca show"];
    IDENTITY_REVOKED = "W3026" Error "the identity, certificate or key is revoked"
        cause: "an admin put it on the denylist, which every agent and server asks at each handshake and of live connections"
        fix: ["see what is denied, and why:   weft identity svid denied",
              "take it off the list:          weft identity svid restore <what>"];
    OLDER_COPY = "W3027" Error "the agent presented a certificate that the node has replaced"
        cause: "a copy of its state directory runs elsewhere, or an old backup was restored"
        fix: ["see where it runs:   weft get agents",
              "if the wrong one is connected, replace both:   weft token create --for agent --node <node> --replace"];
    SVID_ENDS_SOON = "W3028" Error "a certificate ends soon and is not being renewed"
        cause: "requests to the server have failed since half of its life; calls end with it"
        fix: ["see why:   weft agent status", "is the server up?   weft status"];
    MUST_JOIN_AGAIN = "W3029" Error "the node's own certificate has expired, so it must join again"
        cause: "the host slept, or no server was there, for longer than half of the certificate's life"
        fix: ["on the server's host:   weft token create --for agent --node <node> --replace",
              "here, also while the agent runs:   weft agent join --token-file <file>"];
    DENYLIST_FULL = "W3040" Error "the denylist has as many entries as it may"
        cause: "100,000 entries are the most; each ends by itself with the certificates that it is about"
        fix: ["see them:         weft identity svid denied",
              "take one off:     weft identity svid restore <what>",
              "instead of many certificates revoke their identity:   weft identity svid revoke <spiffe-id>"];
    NOT_DENIED = "W3041" Error "that cannot be put on the denylist, or taken off it"
        cause: "it is not on it, or it is the server's own identity, whose denial would keep agents from hearing of its end"
        fix: ["see what is denied:   weft identity svid denied"];
    ROTATION_WAITS = "W3050" Error "the authority cannot take this step yet"
        cause: "an agent has not taken the prepared root, or a certificate under the tainted one is in use; whoever that is would be cut off"
        fix: ["see who:            weft identity ca show",
              "take it anyway:     weft identity ca rotate --phase <phase> --force"];
    NO_SUCH_STEP = "W3051" Error "no root of this server is in the state that this step needs"
        cause: "a root goes from prepared to active, old, tainted and revoked, and a prepared one may be revoked"
        fix: ["see the states:       weft identity ca show",
              "take the next step:   weft identity ca rotate"];
    ROTATION_FORCED = "W3052" Warning "a new root signs although agents have not taken it"
        cause: "the one before ends, and these agents did not answer in all the time since the new one was published"
        fix: ["see who:        weft identity ca show",
              "join it again:  weft token create --for agent --node <node> --replace"];
    UPSTREAM_REFUSED = "W3053" Error "the upstream authority's certificate or key cannot be used"
        cause: "identity.upstream.disk names a chain or key that is not whole, has ended, or may not sign issuers of this mesh"
        fix: ["see the files:          weft config view --server-config <file>",
              "see what signs now:     weft identity ca show"];
}
