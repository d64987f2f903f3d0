"""Unicode as Hugging Face tokenizers 0.23.3 knows it; made by tools/make_unicode_tables.py.

Each table is a list of runs: where one begins, and what its characters are.
"""

from __future__ import annotations

CATEGORIES = (  # 0, then Lu Ll Lt Lm Lo Mn Mc Me Nd Nl ...
    "c-q}rU8r406<+hRX7=85{_dP}<|Owd_nzD&w@H(<w@H&!t!+?REG@M@*isRHunPV_`ydGV5^Aw8MHKO+f}j?kD@bd7Dx"
    "wupp@J44M2asyD8(l&DC)P?-sj{djnTH6V&Sf{XYZL=v(~Ktbr<Vq=CYXp24-lo83Xz@H?_@fZ1cLo_l%jT>6z)e#oHK"
    "f;{(`dvY(iO*(rY6j4(6DNZ!Ua;c2bRCCsh4Wb(|IaWs3Z8CTXAa}~k9&iU5|b~SdZu{<3fel>3A>?`)!UF(<M@yCMA<"
    "JUO-y8HKaa%y*Ba#vMOONiZFwAA`n%-;t7=Qevk?fJo!eViH(P4jEhhr()=d=V^UytB|!<H^dG44w#2k~7xutj$3^PGs"
    "=v=;Zb}UP|SZ+4=9>K;dAkt9j@44YG}^0<>*J3qn3>)w_``W@6|>FntqDwjG#I(VRVbwmDIli~lndn{7!lJ9l}(#y30-"
    "P3^N~6F$QD&M}DJ3&DC|DLz<kYR5Q(2N{|+hpmPUo(D_!GcfUhn)(3OSZ@mat_N+wP73>Ad<}2_$e)JTy_X$EIE4~3?O"
    "`(w49%T0)!`_p*@Lqe!NfB-!$bhPSOt%fjY3(&Hi$O|20vu|N)_V<00o#L0DFXIYIlQvvQa?ZD>4ywgH=v2fpYAegk<C"
    "fg?m{oCsSa55mvhb#Y`^RfE8Hpg2R`HGv(|kID-@VbJO9f^*nPCE?!Z{z}Bu48u68fa*9$1iY5_X0@hrf+ugYI#xCMGD"
    "&~thmgp8z)9wJDPHFRaTIE1+It2&l$vx=(<2?%BEsX&;DUx?7$lVnNKAEdJUT1*Ol1Gss?g^)~6bUWBVOM;D#~hQ!UEw"
    "nC#?oBEA;;xifJ?y_!%{LWfASW4BAd9p`J<R?wZW{o0Jh>~HpaBPn;JBTMz;7f_=k?F{Dj)bB5CZ2PUQh<;B3fSZYcL?"
    "N2rIEdNLDW@s;QRGLOTnn`OYBZrtc<SO_r7cX)V$?I}Lb3(?~On?Xk6iVdMObt5+vRv;M;z(%>PLy*$|vSzh@7R#hVLL"
    "pW{LhuoseGyuYv6Xv>(5WbQBsbI4AqSQ*^gwS4d_)Hu?yE#_etTmP5*H09+ZuHsb@-xV;)f8GeqvRTY-fh;_-OY$aG5!"
    "nFukQ4zmvt3>O4sfiqn)p_X2g0fY<*cYzz0W#%8w8!n310*=5&Mu(vD}$C}0><7jh@FE;e3-^pIaH|ksrm1=Sd;-@4}R"
    "DHvZLy9R-fH(EoiT?}o?I2`$8Ye*e!j@PxeAeyU(57I9PQ%V)YaIa^0jU?*4J5vy5>0d*GFfNQ5Cf*R%1pFO?Z@WRowd"
    "eRla#Iscp9-TJzXGX@$*(BTaCgEByzi6eItj?7D6k3IXC8})S-qK7H&6KeSydq)QJ~At~;&TseX$U`Fw~goGj}cF|df;"
    "3lG8LE;ZsX9fK&Gsd6P&ocl^QWD<hvuu&aiI&N?EePk+I_OL$}{_o@LRfGCX!9!)lSOYYr!nnHVz0FWBfXoi8u5?R4_D"
    "NbnIH|SV)UDp#)MKrV$xSOLoSQ-)SM$h&Db0|QpwdI#wg%MtYerQzd(2**n^~<h$a8v5szUgX)K-VRCL8R9-<_kjL-rD"
    "q(|P1Z%MtaxqXUy6^@9gnuIh!MWL?Gs@YLEzYm4@M470$<tia1tGk;i(wZ%%wgFM??tuBk~9HoPe)(4GA7Lkd^T<qAl^"
    "9m8LiElDCI)2QK;o!SKFu_#RxA$OjqwF0YDPjDsQYe)v-JI?&B|R<sYQULNjUUAGWwY9UIoL?Y3+p9pjxRSq8lSi2^Ja"
    "V{9GAkatJMn~J#5E2WeTps_?lvAfoS#dveVTb?vjk%ud;Y(mv?Up`?prLrR6uY9@l4RLEaY2!JE{5Hz5)sN5})jhZ)xz"
    "NUsEo&{+e(wIltlwIhOBLEn}ZbFqjRai_@^(NNb7`luSZp2}|MZ_zrWb${v63#P2osA&78fJ`>c<z#PPscn6j>(G?Ckz"
    "i%|>~U117;vbednHW_c53BI|9$xCyabzLVDSSI_=-<WS@3qL5r9X$i9Jo)C>4^WVOo?XU4!Sdwmf@^&y}w}0WAJ66*9T"
    "A*l<Ln++*-4NC%L0pd6Uc|5Vs4?gMF|lwkffm$xX*kcc!$%Mg-h)7on*;9snFZ>)Oz>dIyLZrb_PQp_D(X^r1?x^1OP9"
    "bB|>O0Ja%V~dR<DS)IoGj7u;IAbJ9A!)&l4E09#xPKc@@(A;lCSidx(jr)a=r2nuw~vut<rz|Pq@E~r_DgBiC33b)(Om"
    "3HaqUrx0}D%{=4<F9Yw;3vjX*6atrS_3$hD;c^cG1XiiKqXc#_+qO9~>^!bjfsND%^MPu!*bS^30{21TIl;DTF0Qa|;+"
    "R{40k#~$Ri3~UQDO;|NWed0dup-%I313xmN^C$PcB<1NRc$=c_5sUMZTVONpcLk8yRZf43*QO)-1BP%0qjC;g&xoHZ3s"
    "jzF;>sw*u9q8VB(+W7_WoUfvAP49yu^A^AGT{&<9{EKUHT9co4peCsFYzy{OPr{kGs`+G&uDqaI>3`@`Zb~T1?vs)=o{"
    "q6D)d!yoTHy>3}ecQo*2zY42r-9RuE?&%x6<kaz+GL|sldKCKm-AZzNQ*f8aKIsu)0*pMjI4Ln3_m?uvQ_Nk@`oG?_SV"
    "cKR6OdE3fSt><*&D>l|N6Zm>H@AX3WIP?R9zL;xVvC|C<Xb~PY`cq;U^GKO)Xd9aRga!V2}=b<Q3VYPC}FP!)c!W*StN"
    "bDYbeP5&Xj-(xtc98ZQ`Ih?Q}ddaVm`D3oF*~X7V|NJXk}rJW7_XOQO?K&LKF8Rcdj!U#muxUZGBr>Kx@uQX5MPVYBRG"
    "Y1D9vC=Ablj+hJfRB4Pes+6H@9;JIs_s|`DmQI;Iow5-&j%$KNw}lu^L(C}#1(Gz`P)Ebo$IlzuOkh}ROzp$*2t=I)dH"
    "Wf)I@l{PdY?EK)TAIfZ_|`xnvlfr)>u#T5E|}jl29e8$r{XwdpOZ{uf$lhnL~?VsAg_yulAS%)*ND~0xRtqcroWFXC4%"
    "{k_C&ntQ}yf#m&G~`Oq3JPSQ@FSjQwK(59U^tq9u+F=Val!Y#YXb))4v)Eky4u1h*|td!U*bf)xf)OGmS_N820_K#R9Y"
    "rI9NJVVk>kLlEAyY1vf?R?1&oZ!12S=$*D0H1J|5JuQfr?ppTr8gs|F{|0CmBW#5&`yi3rKIhB=q-qlziq%$+bmp8&a#"
    ")XU$<4OixIz`l<9sROAgYN?qNw(ZVUHGy^rQ?(<-)JUP^W^9y>{f6!{r34Uvsj&-npbn1z)NR8MbG?xE^#aSw;K+tv07"
    "+dh~&dk3X%>f3e4HOp?N_Dfp{n>YuiCLCcUP*hs`!bU@i3)gXf#TMs2OaQu-pEA;|$phs?nqP;xZB#6|#MNSMoTS|$&5"
    "oi%iY+UEJ5~y?jf0%F%B1ZVRcx(Qg>J=yrJ*OY7ep%x{*={@jsz<08G-}}AY0HF2Fm5)zI21bd$nsiO;z!ewbF;oACLS"
    "oda!{C=0ra<{Idyt80yleCo3M!rE@WaJ$-ExUf{=`pE(WZ*b8C;P5oS-p7EeT+B|JMez%SSX=6tlyE`0%G}Js2a#I>@J"
    "4QHzDe#T?Nd$O*1VO-oy623Fc9wkpDBa0k8<}S#{7&fmb7Z|{f>3`O2lVpw(8m{QJ_=*_{cYr>CkVhI`j!><&ilLO=>R"
    "5K(PNGu$@EE_+J|qe<>q9zh)VhSZ#L*ppbnIO*Oj~II%vlXDa5DC&GcuXTFR}PiztFCAy#wfd5K}8`0#dAjPEEgrSe(0"
    "h@QfINSODgM-iyZx?MLC1+tZK``;(4y+C<NonA?8t7(?3OS(>Ch?jmq7gLsBASCSyxbAC<|5Dh8<ZZ7p<Gt35gZ)oO?f"
    "=Y9*5`dW8+<t#q#-&e(!%6C6lu~hJP(yb+BdOKOZ%&~4Z9YsK1DMnc;4a<KynY!35g*gdaJr2P2^{-MAon-{XVD<Lf7P"
    "Z2kSRpUSBYxHrivw^8BJx+wiM6Z|Fy2>j+=rC~cW7_!4aF6z|J{-iA8HB{T8qE@S~x)BK>_KJQR0J!aFPH45;r?7MLb?"
    "vnMF!g9`c{@d@uC%D%n73qBX8sCTj_(e;{i>C)r{tcl?Lu4fahoM>h^bJ#PqW!Q%SyC6+a2Zf2j~n`{DLnl(<MSGF7|C"
    "NkgYgHEPxp#6QHT1xsX!?Bb_CB2$&m2PmRsnT7RL?nK{hspu`ufK35(^Nub}><_e1NyP|=G&x4fY5FK`{d72X~`0lWFm"
    "TVY5qdH&{@zV7*ViGGUoh+bUqFTQsS5q5(<G(T@(IN?iwbM*IrxP7+!{U-*l3Jm"
)
CATEGORY_NAMES = [
    "Cn",
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "Mn",
    "Mc",
    "Me",
    "Nd",
    "Nl",
    "No",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Zs",
    "Zl",
    "Zp",
    "Cc",
    "Cf",
    "Co",
]
FLAGS = (  # bits in the order of FLAG_NAMES
    "c-nneU5H&*6<&Ltb$;*MJ9o}ZGLt=-nUgdbGMVOY(j>LgHl?=G`Vc`{sSlzQ6;!a`qc0&86>33Hd{D@PO5cR~qDB!a*c"
    "P;cg62_*P<>E}4?c)U>-Vj_@6Al8ec1QzbN0{r`_{MCX$K8@EQEdtVbMCREvi|lg8x@TI2N%Itdw9XL4ySeLyei{=K?F"
    "M8e|LOH-(xk=tN587Hriec`lZisj3){Yn6`qYLFF-k72yPhcasa5+~cr%PZS~m`ct>oWsyOLTqFmk_@XOsfI!nYEhvPR"
    "|n2_^-%0!f@+A*y4*T)rHarb2C=y4GA3>iWX4Thk1Ee7?tlfm+G1yr0w=jo<**u7T8sh%s>&kH9>EjVF&k+qYdBG9BM<"
    "7N4>H8iU&hU$4?NX3(J<4Vx^&P&;qYKn^>@-hhPs>}wR@+ag_6!99-=)5pBo9iiR;IE;PWo~8#^cuTG)ZxbUyq>DSD0A"
    "fwM(K2xHCY;CwCA4AF_Bd{gUE!hxI0xn3piO8cl8J+(*~n9;T-S@NFt?Z3x8bihW(PdsR4=NeAa30PRTUWR|oXi}f^eF"
    "2|X(y7ODPm7a&z+XSXUA(90XVwwIQ`fLyl;9O&q^50@o;;hin7VGsraPy*yX-0ZndPvFH}%yl0@;>A7xGOrE$;P5hq=D"
    "M8Q=Hy+yfo#_Bdll4=ahdHb=fzM$&MS+B3=xWOnKvwFNm(S-@V2oeeStD|T}3J7(!xo_D^pf_&xhHTQW;tIXxW5y~7O3"
    "23CGkxNYjx!2P_ClH4TB3XL&mdr0X5nJqNr8L9{I_$z8*xloP_=^4-A^R)k%sk(KSFL;SOB}n$Ag@oJ?leVq+jT766T8"
    "6P@6^GeIhoRYC;uONkF`boe<05vRVGGjs{qARp2kzf(Aq!9IZGPo9$5VmEo_9G>0QTGmdOUz;#uQ@jB`{uzmJ~m>)1FV"
    "N0GczSV-}Q=MKxraK`|<!9g{V)F0P`fX5Ma(kqdP-0TysD@3`0_fC0yM!=3qR7PPNc%&D3v)ZMcU3H3#%WrVHV>W<?c%"
    "qV;%nSx)q^5d77>#qDfo05S<~c;1MWT}yHqoL@^}OvlFXH`vf;t9&#tAVyp$#N*Pl1RdUUGrV4a;`vW^KR|u-(S4C3py"
    "f+82(#QeFvqnMDMGzN0x5+xfrA0i2C3yt}lIK?|QJCM741Q%3o_Q3!(`*I^AJOD}+0F(zZjbf`KDd@tR=yGE=sI`&#K)"
    "{8QBHZS^xxP(=6+;v%MnX24;kXuKdH6_-}>*9{Six;+m3tuRJk9UwJb`4Kk(%H8PIcyJOdBBSsCU23qm<fs-%&Xmgyx*"
    "VdtxXWoRp7AB9{7J_i05F-vi%Z-5omIu9fH4LBol@c6+fjtK>oBB6$UEUCos$d7vz&LV$k!*kn1L|T-2-b;*WwpDrXVg"
    "7r~=;R9A!;0vfDCd=Z=YQH%;Ewz%|jInibe)aW5$H7pzfv?Sq*{#u5I3^>t#Pp6J9VxP$EW5rB@Vmn|pMKdyDh9QC*jD"
    "N<lI!bYGKlWNp-hp}X2;}a7=`{0BOEY7WaGaP9Hx@FhQG1?~g?AC9<CD*8<Yyo{vlqJ??Cu<)Y21kkT{nT=U)EHee3<8"
    "@XW|b(j<T={1uy9HQ@Or3yiLr19$8&uq4bC|Z-etoIj?+ad{K|d-*LdEauvre>nSgU)7YVrnu2z;TC>7o?yV09I5?clu"
    "lkyIJA?N<Qel`^33ga9@l_STG9hIMSmPP^=8lyF$x$hoF9W+0-wReuy0PP$=yCZ9bI=|{o_?K_bR)=ybHXAXwg9QIY+}"
    "bYdaM#NN@5K`Oc1ftax*1b<%Nag6xyNtSb7)$XYpBkaqyW*wje)M#Nsd*wL#QaOHX?ReJl~Y*Wk37Vpd&xBh0BSeI#4b"
    ";XLXWJi@m4DzcB2{i=9ph*Uv_62Hzf8(v7@<T#bqYJVm&?{Vfjszh9kig6hdYolJvu)jw>n>{N}=oPt$XAYW4v$vgJ*m"
    "L|RDW962Da2htU1KBI;C~BBo|Z$p?#d_dUed)_+ZvLr^~5-n8cTu}ZL>MO9q|^h!ukm%^`lV`HqwS$?_nYt3mwz)JWjV"
    "vEdOF~0{2F{0BQB=t+AJYR1yFtl<$Z3RooOCwux1yi3YBtY<-`GF_lbjfLIQ_VMKF~8@tjAC+a#&4O-YPw?^rsA{=-&r"
    "yLNvZUBmXPhRW%vtm<dTjhn%oPv}e0~S04F9oQZI`Y}#DnB&haX;3~O(rXiydLlBtnya*Yals!1=+Ih2ub}<38av7m}#"
    "}%3i3hyj64ZiY;p_QWIt@?R=x$IJAK^O&(7D^<zapzU_9wS?g6CN13<CpQrRz_L``OY82sHDE`+1;X3{?~clN!B_k7-F"
    "^i}!!Wd5(*lAoxfY{|)#@Ejxep2Fd4^4(fLD_>&h@U8aipl__mry=v@28boxzqbXqzixW#l02ZVjpdf%#w`yOIr^H<D%"
    "X!4WCtIkgEjN7NqV;h$V+6+%Y~fr_T;qy>boA$oblt~EShU16WYeBnIuuj@qzd6bFk=kt2;RHx5pd|GrNDFq#~dqHU1M"
    "J_P<f+^SyilqQ;QYy4h@d!Jxw%10KF=9)VT8$^MLARaM^%Km)+I2?f5*2JRPyJOv3Ko_&dBh*SDPP7G@CNNz)${CqUSw"
    "aonm-~EvXk9eM?ukZK!CqDLAr>_8Ed*~ZOWUm09+9Lfbi}Cjjb~C_#f=nP`iD{I+>!d_tJ%q{<^f`C(#3`6{`B#clO9<"
    "WV0%UZX<?XGcpUqi6$g50*I_}7a(8RM@LKd~YV?FPhC1saSrp~F#oz<OAs<><a-D9>ki>K|ok9RNS{;%};zf#Mb#$Q($"
    "#YW!5m%|`GAMo<eyz0goK;Xv@026PUet%hRn*L=ZzeRnLHwXR0&vsGlHsw<TAotG@zxm%n-g&n``Afh51M#lO`T"
)
FLAG_NAMES = ("white", "word", "punctuation", "bert_mark", "mark", "bert_control")
# Lower case, where Python 3.11 knows none.
LOWER = {
    0x1C89: "\u1c8a",
    0xA7CB: "\u0264",
    0xA7CC: "\ua7cd",
    0xA7CE: "\ua7cf",
    0xA7D2: "\ua7d3",
    0xA7D4: "\ua7d5",
    0xA7DA: "\ua7db",
    0xA7DC: "\u019b",
    0x10D50: "\U00010d70",
    0x10D51: "\U00010d71",
    0x10D52: "\U00010d72",
    0x10D53: "\U00010d73",
    0x10D54: "\U00010d74",
    0x10D55: "\U00010d75",
    0x10D56: "\U00010d76",
    0x10D57: "\U00010d77",
    0x10D58: "\U00010d78",
    0x10D59: "\U00010d79",
    0x10D5A: "\U00010d7a",
    0x10D5B: "\U00010d7b",
    0x10D5C: "\U00010d7c",
    0x10D5D: "\U00010d7d",
    0x10D5E: "\U00010d7e",
    0x10D5F: "\U00010d7f",
    0x10D60: "\U00010d80",
    0x10D61: "\U00010d81",
    0x10D62: "\U00010d82",
    0x10D63: "\U00010d83",
    0x10D64: "\U00010d84",
    0x10D65: "\U00010d85",
    0x16EA0: "\U00016ebb",
    0x16EA1: "\U00016ebc",
    0x16EA2: "\U00016ebd",
    0x16EA3: "\U00016ebe",
    0x16EA4: "\U00016ebf",
    0x16EA5: "\U00016ec0",
    0x16EA6: "\U00016ec1",
    0x16EA7: "\U00016ec2",
    0x16EA8: "\U00016ec3",
    0x16EA9: "\U00016ec4",
    0x16EAA: "\U00016ec5",
    0x16EAB: "\U00016ec6",
    0x16EAC: "\U00016ec7",
    0x16EAD: "\U00016ec8",
    0x16EAE: "\U00016ec9",
    0x16EAF: "\U00016eca",
    0x16EB0: "\U00016ecb",
    0x16EB1: "\U00016ecc",
    0x16EB2: "\U00016ecd",
    0x16EB3: "\U00016ece",
    0x16EB4: "\U00016ecf",
    0x16EB5: "\U00016ed0",
    0x16EB6: "\U00016ed1",
    0x16EB7: "\U00016ed2",
    0x16EB8: "\U00016ed3",
}
# Left whole by every form, where Python 3.11 takes them apart.
WHOLE = "\u32ff\ua7f2\ua7f3\ua7f4\uab69\U00010781\U00010782\U00010783\U00010784\U00010785\U00010787\U00010788\U00010789\U0001078a\U0001078b\U0001078c\U0001078d\U0001078e\U0001078f\U00010790\U00010791\U00010792\U00010793\U00010794\U00010795\U00010796\U00010797\U00010798\U00010799\U0001079a\U0001079b\U0001079c\U0001079d\U0001079e\U0001079f\U000107a0\U000107a1\U000107a2\U000107a3\U000107a4\U000107a5\U000107a6\U000107a7\U000107a8\U000107a9\U000107aa\U000107ab\U000107ac\U000107ad\U000107ae\U000107af\U000107b0\U000107b2\U000107b3\U000107b4\U000107b5\U000107b6\U000107b7\U000107b8\U000107b9\U000107ba\U00011938\U0001f16c\U0001fbf0\U0001fbf1\U0001fbf2\U0001fbf3\U0001fbf4\U0001fbf5\U0001fbf6\U0001fbf7\U0001fbf8\U0001fbf9"
# Marks that every form leaves where they stand, where Python 3.11 knows their order.
UNORDERED = "\u07fd\u0898\u0899\u089a\u089b\u089c\u089d\u089e\u089f\u08ca\u08cb\u08cc\u08cd\u08ce\u08cf\u08d0\u08d1\u08d2\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf\u1ac0\u1ac1\u1ac2\u1ac3\u1ac4\u1ac5\u1ac6\u1ac7\u1ac8\u1ac9\u1aca\u1acb\u1acc\u1acd\u1ace\u1df6\u1df7\u1df8\u1df9\u1dfa\ua82c\U00010d24\U00010d25\U00010d26\U00010d27\U00010eab\U00010eac\U00010f46\U00010f47\U00010f48\U00010f49\U00010f4a\U00010f4b\U00010f4c\U00010f4d\U00010f4e\U00010f4f\U00010f50\U00010f82\U00010f83\U00010f84\U00010f85\U00011070\U0001133b\U0001145e\U00011839\U0001183a\U0001193d\U0001193e\U00011943\U000119e0\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44\U00011d45\U00011d97\U00016ff0\U00016ff1\U0001e130\U0001e131\U0001e132\U0001e133\U0001e134\U0001e135\U0001e136\U0001e2ae\U0001e2ec\U0001e2ed\U0001e2ee\U0001e2ef"
